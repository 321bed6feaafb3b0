"""Personal data and broken encodings in text, by pattern. Says that something is there, never what."""

from __future__ import annotations

import re
from enum import StrEnum


class Pattern(StrEnum):
    """What may be found in a text."""

    EMAIL = "email"
    PHONE = "phone"
    CARD = "card"
    IBAN = "iban"
    MOJIBAKE = "mojibake"


_EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
# International with its plus sign, or the North American form with its separators: bare digits are mostly amounts.
_PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}(?!\w)|(?<!\w)\(?\d{3}\)?[ .-]\d{3}[.-]\d{4}(?!\w)"
)
_CARD = re.compile(r"(?<![\d.,-])(?:\d[ -]?){12,18}\d(?![\d.,-]\d)")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
# UTF-8 read as Latin-1 or Windows-1252, the replacement character, and control characters of C1.
_MOJIBAKE = re.compile("[ÂÃ][\u0080-\u00bf]|â[\u0080-\u009f€]|ï»¿|\ufffd|[\u0080-\u0084\u0086-\u009f]")


def find_patterns(text: str) -> frozenset[Pattern]:
    """Which patterns occur in a text."""
    found = set()
    if "@" in text and _EMAIL.search(text):
        found.add(Pattern.EMAIL)
    if _PHONE.search(text):
        found.add(Pattern.PHONE)
    if any(is_card_number(match[0]) for match in _CARD.finditer(text)):
        found.add(Pattern.CARD)
    if any(is_iban(match[0]) for match in _IBAN.finditer(text)):
        found.add(Pattern.IBAN)
    if not text.isascii() and _MOJIBAKE.search(text):
        found.add(Pattern.MOJIBAKE)
    return frozenset(found)


def is_card_number(text: str) -> bool:
    """Whether 13 to 19 digits pass Luhn's check."""
    digits = [int(char) for char in text if char.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether the text passes the check of ISO 13616 (remainder 1 of 97)."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1

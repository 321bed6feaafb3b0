"""When two texts count as the same input: equal but for case, spacing, typography and closing punctuation."""

from __future__ import annotations

import hashlib
import re
import unicodedata

# Single and double quotation marks, dashes and the minus sign.
_TYPOGRAPHY = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2212", "''\"\"---")
# Only where a word ends: the point of 3.5 and the colon of 12:30 carry meaning.
_CLOSING = re.compile(r"[.,;:!?]+(?=\s|$)")


def normalised(text: str) -> str:
    """The text without the differences that do not make it another input. Digits, signs and brackets stay."""
    plain = unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHY).casefold()
    return " ".join(_CLOSING.sub("", plain).split())


def identity(text: str) -> str:
    """A digest that is equal for texts that count as the same input."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()

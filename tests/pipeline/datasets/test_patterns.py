from __future__ import annotations

import pytest

from lorafleet_pipeline.datasets.patterns import Pattern, find_patterns


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("write to ada.lovelace@example.org today", Pattern.EMAIL),
        ("call +49 30 901820 now", Pattern.PHONE),
        ("call (555) 010-4477.", Pattern.PHONE),
        ("call 555-010-4477", Pattern.PHONE),
        ("paid by 4111 1111 1111 1111", Pattern.CARD),
        ("paid by 5500-0000-0000-0004", Pattern.CARD),
        ("to GB82 WEST 1234 5698 7654 32", Pattern.IBAN),
        ("to DE89370400440532013000.", Pattern.IBAN),
        ("the cafÃ© is open", Pattern.MOJIBAKE),
        ("itâ\u0080\u0099s", Pattern.MOJIBAKE),
        ("itâ€™s", Pattern.MOJIBAKE),
        ("lost \ufffd character", Pattern.MOJIBAKE),
        ("Ralph\u0092s", Pattern.MOJIBAKE),
    ],
)
def test_pattern_is_found(text: str, pattern: Pattern) -> None:
    assert pattern in find_patterns(text)


@pytest.mark.parametrize(
    "text",
    [
        "a@b and user@host",
        "in 2019-2020 it cost 1,234,567 of 7,654,321",
        "paid by 4111 1111 1111 1112",
        "0000 0000 0000 0000",
        "to GB82 WEST 1234 5698 7654 33",
        "café, naïve, Ångström, São Paulo, Â, and 20 °C",
        "",
        "x = 3.14159265358979323846",
    ],
)
def test_ordinary_text_holds_no_pattern(text: str) -> None:
    assert find_patterns(text) == frozenset()

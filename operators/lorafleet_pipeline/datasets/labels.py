"""The labels of a classification task: those that train never shows, and those that look misspelt."""

from __future__ import annotations

import re
from collections.abc import Mapping

MIN_LABEL_CHARS = 4
"""Shorter labels (A and B, 1 and 2) are near each other by nature."""
RARITY = 20
"""A label is taken for a misspelling of another that is this many times as frequent."""

# Signs are kept: -1 is not 1, and C is not C#.
_SEPARATORS = re.compile(r"[\s_]+|(?<=\w)-(?=\w)")


def near_misses(counts: Mapping[str, int]) -> frozenset[str]:
    """Labels that differ from a far more frequent one by case and spacing alone, or by one edit."""
    by_form: dict[str, list[str]] = {}
    for label in counts:
        by_form.setdefault(_form(label), []).append(label)
    found = {
        label
        for labels in by_form.values()
        for label in labels
        if any(counts[other] > counts[label] for other in labels)
    }
    forms = {form: sum(counts[label] for label in labels) for form, labels in by_form.items()}
    for form, count in forms.items():
        frequent = (other for other, others in forms.items() if others >= RARITY * count)
        if any(_one_edit_apart(form, other) for other in frequent):
            found.update(by_form[form])
    return frozenset(found)


def _form(label: str) -> str:
    return _SEPARATORS.sub(" ", label.casefold().strip())


def _one_edit_apart(first: str, second: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbours turns one word into the other."""
    if min(len(first), len(second)) < MIN_LABEL_CHARS or abs(len(first) - len(second)) > 1 or first == second:
        return False
    start = next(
        (index for index, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )
    rest, other = first[start:], second[start:]
    swapped = rest[:2] == other[1::-1] and rest[2:] == other[2:]
    return rest[1:] == other[1:] or rest[1:] == other or rest == other[1:] or swapped

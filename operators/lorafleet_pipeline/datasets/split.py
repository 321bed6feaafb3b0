"""Splitting rows so that no input stands on both sides.

Rows are dealt out in groups of one identity, in an order that only seed and identity decide: more rows
or another order of the file move few of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from lorafleet_pipeline.exceptions import DatasetUnreadable


def split_indices(identities: Sequence[str], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Take a share of rows for each fraction; the last list holds the rest.

    Args:
        identities: identity of each row's input; rows of one identity stay together.
        fractions: share of all rows wanted in each part.
        seed: another seed deals another way.

    Returns:
        Indices of each part and of the rest, in the order of the rows. A part may miss its share by a group.

    Raises:
        DatasetUnreadable: there are too few distinct inputs for every part to have one.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(identities):
        groups.setdefault(key, []).append(index)
    wanted = [fraction for fraction in fractions if fraction > 0]
    if len(groups) <= len(wanted):
        raise DatasetUnreadable(
            f"the train rows hold {len(groups)} distinct inputs, too few to take {len(wanted)} more splits from: "
            "add rows, or give dataset.validation and dataset.test"
        )
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    parts: list[list[int]] = []
    for position, fraction in enumerate(fractions):
        if fraction == 0:
            parts.append([])
            continue
        # Every part leaves one group to each that follows it, and one to the rest.
        leave = 1 + sum(later > 0 for later in fractions[position + 1 :])
        chosen = _choose(order, groups, round(fraction * len(identities)), len(order) - leave)
        parts.append(sorted(index for key in chosen for index in groups[key]))
        order = [key for key in order if key not in chosen]
    return [*parts, sorted(index for key in order for index in groups[key])]


def _choose(order: Sequence[str], groups: Mapping[str, Sequence[int]], share: int, most: int) -> set[str]:
    """The first groups that fit the share; the smallest one when none does."""
    chosen: set[str] = set()
    count = 0
    for key in order:
        if count >= share or len(chosen) >= most:
            break
        if count + len(groups[key]) <= share:
            chosen.add(key)
            count += len(groups[key])
    return chosen or {min(order, key=lambda key: len(groups[key]))}

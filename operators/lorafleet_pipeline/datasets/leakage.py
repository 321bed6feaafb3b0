"""Inputs that stand in more than one split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorafleet_pipeline.datasets.dataset import Split


@dataclass(frozen=True)
class Leakage:
    """Indices of the rows concerned, within their split."""

    train: frozenset[int]
    """Train rows whose input recurs in validation or test."""
    validation: frozenset[int]
    """Validation rows whose input stands in train."""
    test: frozenset[int]
    """Test rows whose input stands in train."""
    validation_in_test: frozenset[int]
    """Validation rows whose input recurs in test."""


def find_leakage(identities: Mapping[Split, Sequence[str]]) -> Leakage:
    """Compare the identities of the splits' inputs."""
    train, validation, test = (set(identities[split]) for split in (Split.TRAIN, Split.VALIDATION, Split.TEST))
    return Leakage(
        train=_within(identities[Split.TRAIN], validation | test),
        validation=_within(identities[Split.VALIDATION], train),
        test=_within(identities[Split.TEST], train),
        validation_in_test=_within(identities[Split.VALIDATION], test),
    )


def _within(identities: Sequence[str], others: set[str]) -> frozenset[int]:
    return frozenset(index for index, key in enumerate(identities) if key in others)

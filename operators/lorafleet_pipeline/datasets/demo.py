"""The default demo's dataset: from a function's source to its one-line summary, split without leakage.

Whole packages go to one split; near-copies between packages, such as the twins of `posixpath` and
`ntpath` or a synchronous and an asynchronous version, are left out of the earlier split.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.docstrings import DocumentedFunction, documented_functions
from lorafleet_pipeline.datasets.identity import normalised
from lorafleet_pipeline.exceptions import DatasetUnreadable

TARGETS = {Split.TEST: 300, Split.VALIDATION: 120}
"""Rows wanted in the held-out splits; train takes the rest."""
MIN_TRAIN = 500
MAX_PACKAGE_SHARE = 0.2
"""A package with a larger share of a held-out split stays in train, so that the split is of many authors."""
NEAR_COPY = 0.6
"""Share of common shingles from which two sources count as near-copies."""
_SHINGLE_LEN = 4
_TOKEN = re.compile(r"\w+|[^\w\s]")
_ASYNC = frozenset({"async", "await"})


def build_docstring_dataset(folder: Path, library: Path | None = None) -> Mapping[Split, int]:
    """Write `train.jsonl`, `validation.jsonl` and `test.jsonl`; the same Python gives the same files.

    Args:
        folder: where the files go.
        library: another folder of Python sources than the standard library.

    Returns:
        Rows of each split.

    Raises:
        DatasetUnreadable: the library holds too few documented functions.
    """
    splits = split_by_package(_distinct(documented_functions(library)))
    if len(splits[Split.TRAIN]) < MIN_TRAIN or any(len(splits[split]) < TARGETS[split] // 2 for split in TARGETS):
        raise DatasetUnreadable(
            f"Python's library at {library or 'its standard place'} has sources of too few documented functions "
            f"({sum(map(len, splits.values()))}): use a Python that ships its .py files"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for split, functions in splits.items():
        lines = (json.dumps(function.to_json(), ensure_ascii=False) for function in functions)
        (folder / split.file_name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return {split: len(functions) for split, functions in splits.items()}


def split_by_package(functions: Sequence[DocumentedFunction]) -> dict[Split, list[DocumentedFunction]]:
    """Whole packages to one split; what is a near-copy of a later split's function is left out."""
    packages: defaultdict[str, list[DocumentedFunction]] = defaultdict(list)
    for function in functions:
        packages[function.package].append(function)
    order = sorted(packages, key=lambda name: hashlib.sha256(name.encode()).digest())
    splits: dict[Split, list[DocumentedFunction]] = {}
    held_out = NearCopies()
    for split, target in TARGETS.items():
        chosen: list[DocumentedFunction] = []
        for name in [name for name in order if len(packages[name]) <= MAX_PACKAGE_SHARE * target]:
            if len(chosen) >= target:
                break
            order.remove(name)
            chosen += [function for function in packages[name] if not held_out.has_copy_of(function)]
        for function in chosen:
            held_out.add(function)
        splits[split] = chosen
    rest = [function for name in sorted(order) for function in packages[name]]
    splits[Split.TRAIN] = [function for function in rest if not held_out.has_copy_of(function)]
    return {split: splits[split] for split in Split}


class NearCopies:
    """Finds functions whose summary equals, or whose source resembles, one that was added."""

    def __init__(self) -> None:
        self._summaries: set[str] = set()
        self._sizes: list[int] = []
        self._holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)

    def add(self, function: DocumentedFunction) -> None:
        """Remember a function."""
        self._summaries.add(normalised(function.summary))
        shingles = _shingles(function.source)
        for shingle in shingles:
            self._holders[shingle].append(len(self._sizes))
        self._sizes.append(len(shingles))

    def has_copy_of(self, function: DocumentedFunction) -> bool:
        """Whether a remembered function is a near-copy of this one."""
        if normalised(function.summary) in self._summaries:
            return True
        shingles = _shingles(function.source)
        common = Counter(index for shingle in shingles for index in self._holders.get(shingle, ()))
        return any(count >= NEAR_COPY * min(len(shingles), self._sizes[index]) for index, count in common.items())


def _distinct(functions: Iterable[DocumentedFunction]) -> list[DocumentedFunction]:
    """Functions without those whose source or summary an earlier one has."""
    seen: set[str] = set()
    kept = []
    for function in functions:
        keys = {f"source {normalised(function.source)}", f"summary {normalised(function.summary)}"}
        if not keys & seen:
            kept.append(function)
        seen |= keys
    return kept


def _shingles(source: str) -> frozenset[tuple[str, ...]]:
    """Runs of tokens, without what distinguishes an asynchronous twin."""
    tokens = [token for token in _tokens(source) if token not in _ASYNC]
    return frozenset(tuple(tokens[at : at + _SHINGLE_LEN]) for at in range(max(1, len(tokens) - _SHINGLE_LEN + 1)))


def _tokens(source: str) -> Iterator[str]:
    # An asynchronous twin carries its mark in names as well: `__aenter__`, `AsyncExitStack`.
    return (match[0].lower().removeprefix("async") for match in _TOKEN.finditer(source))

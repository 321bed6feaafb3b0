"""The prepared dataset: rendered examples in three splits, and the facts of how they came about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, Self

from lorafleet_pipeline.datasets.patterns import find_patterns

MAX_EXAMPLE_CHARS = 4000
"""Longest example input, as JSON, that travels with a version."""


class Split(StrEnum):
    """What a set of examples is for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"

    @property
    def file_name(self) -> str:
        """Name of the split's file."""
        return f"{self.value}.jsonl"


@dataclass(frozen=True)
class Example:
    """One rendered row."""

    prompt: str
    completion: str
    row: int
    """Line or row number in the source, from 1: what a report may name instead of the content."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Values of the columns that the prompt template reads."""

    def to_json(self) -> dict[str, Any]:
        """The example as a JSON object."""
        return {"prompt": self.prompt, "completion": self.completion, "row": self.row, "variables": {**self.variables}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read an example back."""
        return cls(**data)


@dataclass(frozen=True)
class SplitFacts:
    """One split, without its content."""

    address: str
    """Where its rows came from."""
    file_bytes: int
    """Size of that source."""
    rows: int
    """Rows there were to choose from."""
    examples: int
    """Examples kept."""
    removed: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the facts back."""
        return cls(**data)


@dataclass(frozen=True)
class Dataset:
    """Prepared examples of every split."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    digest: str
    """Digest over the prompts and completions of every split, in order."""
    facts: Mapping[Split, SplitFacts] = field(default_factory=dict)

    def split(self, split: Split) -> tuple[Example, ...]:
        """Examples of one split."""
        return {Split.TRAIN: self.train, Split.VALIDATION: self.validation, Split.TEST: self.test}[split]

    def prompt_examples(self, count: int = 2) -> tuple[Mapping[str, Any], ...]:
        """Inputs that travel with a version: none of them is judged in the evaluation or looks like personal data."""
        return tuple(dict(example.variables) for example in islice(filter(_may_travel, self.validation), count))

    def manifest(self) -> dict[str, Any]:
        """What `dataset/manifest.json` says: where the data came from and what it is, but none of it."""
        return {"digest": self.digest, "splits": {str(name): asdict(facts) for name, facts in self.facts.items()}}


def _may_travel(example: Example) -> bool:
    """Whether an input may be shown to everyone, is short enough to be, and is JSON that everyone reads."""
    # What travels is the whole value of each column, of which the template may print a part.
    if any(find_patterns(text) for text in (example.prompt, *_texts(example.variables))):
        return False
    try:
        text = json.dumps({**example.variables}, allow_nan=False, default=str)
    except ValueError:
        return False  # Infinity is no JSON, though Python writes and reads it.
    return len(text) <= MAX_EXAMPLE_CHARS


def _texts(value: Any) -> Iterator[str]:
    """Every text within a value, keys too, as it stands: JSON would put letters of its escapes before a number."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


def examples_digest(splits: Mapping[Split, Iterable[Example]]) -> str:
    """Digest over prompts and completions. Row numbers and file names do not enter it: only the text trains."""
    sha = hashlib.sha256()
    for split in Split:
        sha.update(f"{split.value}\n".encode())
        for example in splits[split]:
            sha.update(json.dumps([example.prompt, example.completion], ensure_ascii=True).encode() + b"\n")
    return f"sha256:{sha.hexdigest()}"

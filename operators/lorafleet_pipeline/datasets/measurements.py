"""What the suite judges: one table per split, of the row's own columns and of facts measured on its example.

The measured columns carry a prefix that no column of a user has. Flags are true where something is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.labels import near_misses
from lorafleet_pipeline.datasets.lengths import LengthMeter
from lorafleet_pipeline.datasets.patterns import Pattern, find_patterns
from lorafleet_pipeline.datasets.preparation import Assembly, RenderedSplit

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "lorafleet."


class Column(StrEnum):
    """Measured columns."""

    PROMPT = "lorafleet.prompt"
    COMPLETION = "lorafleet.completion"
    PROMPT_CHARS = "lorafleet.prompt_chars"
    COMPLETION_CHARS = "lorafleet.completion_chars"
    PROMPT_TOKENS = "lorafleet.prompt_tokens"
    TOKENS = "lorafleet.tokens"
    DUPLICATE = "lorafleet.duplicate"
    CONTRADICTION = "lorafleet.contradiction"
    IN_TRAIN = "lorafleet.in_train"
    RECURS = "lorafleet.recurs"
    UNKNOWN_LABEL = "lorafleet.unknown_label"
    NEAR_MISS_LABEL = "lorafleet.near_miss_label"
    EMAIL = "lorafleet.email"
    PHONE = "lorafleet.phone"
    CARD = "lorafleet.card"
    IBAN = "lorafleet.iban"
    MOJIBAKE = "lorafleet.mojibake"


def measure(assembly: Assembly, split: Split, meter: LengthMeter, *, labelled: bool) -> pd.DataFrame:
    """The table of one split; label columns are there only when completions are labels."""
    import pandas as pd

    rendered = assembly.splits[split]
    measured: dict[str, Sequence[object]] = {
        **_texts(rendered),
        **_lengths(rendered, meter),
        **_repetitions(rendered),
        **_leaks(assembly, split),
        **_patterns(rendered),
    }
    if labelled:
        measured |= _labels(assembly, split)
    # Typed as objects: pandas would read numbers in text, and a column of nulls has no type to guess.
    own = pd.DataFrame([{**row.values} for row in rendered.rows], columns=list(rendered.columns), dtype=object)
    return pd.concat([own.infer_objects(), pd.DataFrame(measured)], axis=1)


def _texts(rendered: RenderedSplit) -> dict[str, Sequence[object]]:
    return {
        Column.PROMPT: [None if row.null_prompt else row.example.prompt for row in rendered.rows],
        Column.COMPLETION: [None if row.null_completion else row.example.completion for row in rendered.rows],
        Column.PROMPT_CHARS: [len(row.example.prompt.strip()) for row in rendered.rows],
        Column.COMPLETION_CHARS: [len(row.example.completion.strip()) for row in rendered.rows],
    }


def _lengths(rendered: RenderedSplit, meter: LengthMeter) -> dict[str, Sequence[object]]:
    prompts = meter.measure([row.example.prompt for row in rendered.rows])
    completions = meter.measure([row.example.completion for row in rendered.rows])
    return {
        Column.PROMPT_TOKENS: prompts,
        Column.TOKENS: [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)],
    }


def _repetitions(rendered: RenderedSplit) -> dict[str, Sequence[object]]:
    """Rows that repeat an earlier one, and rows whose input has another answer elsewhere in the split."""
    seen: set[tuple[str, str]] = set()
    answers: dict[str, set[str]] = {}
    duplicate = []
    for key, row in zip(rendered.identities, rendered.rows, strict=True):
        pair = (row.example.prompt, row.example.completion)
        duplicate.append(pair in seen)
        seen.add(pair)
        answers.setdefault(key, set()).add(row.example.completion.strip())
    return {
        Column.DUPLICATE: duplicate,
        Column.CONTRADICTION: [len(answers[key]) > 1 for key in rendered.identities],
    }


def _leaks(assembly: Assembly, split: Split) -> dict[str, Sequence[object]]:
    leakage = assembly.leakage
    columns = {
        Split.TRAIN: {Column.RECURS: leakage.train},
        Split.VALIDATION: {Column.IN_TRAIN: leakage.validation, Column.RECURS: leakage.validation_in_test},
        Split.TEST: {Column.IN_TRAIN: leakage.test},
    }
    count = len(assembly.splits[split].rows)
    return {column: [index in rows for index in range(count)] for column, rows in columns[split].items()}


def _labels(assembly: Assembly, split: Split) -> dict[str, Sequence[object]]:
    labels = {name: [row.example.completion.strip() for row in part.rows] for name, part in assembly.splits.items()}
    counts: Mapping[str, int] = Counter(label for part in labels.values() for label in part)
    known, suspect = set(labels[Split.TRAIN]), near_misses(counts)
    return {
        Column.UNKNOWN_LABEL: [label not in known for label in labels[split]],
        Column.NEAR_MISS_LABEL: [label in suspect for label in labels[split]],
    }


def _patterns(rendered: RenderedSplit) -> dict[str, Sequence[object]]:
    found = [find_patterns(f"{row.example.prompt}\n{row.example.completion}") for row in rendered.rows]
    return {f"{PREFIX}{pattern}": [pattern in patterns for patterns in found] for pattern in Pattern}

"""The checks of a dataset, built from its spec: which expectation judges which column, and how strictly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lorafleet_contract.prompt import template_variables
from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.measurements import Column
from lorafleet_pipeline.datasets.report import Severity
from lorafleet_pipeline.spec import AdapterSpec, Metric

MAX_DUPLICATES = 0.5
"""Share of repeated train rows above which the dataset is refused."""
MAX_UNKNOWN_LABELS = 0.01
"""Share of rows with a label that train never shows, above which the dataset is refused."""
MAX_TOO_LONG = 0.5
"""Share of train rows over `training.max_len` above which the dataset is refused."""
OUTLIER_FACTOR = 4
"""A row is unusually long when it has this many times the 95th percentile of its split."""

_PERSONAL = {
    Column.EMAIL: "e-mail address",
    Column.PHONE: "phone number",
    Column.CARD: "card number",
    Column.IBAN: "IBAN",
}


@dataclass(frozen=True)
class Check:
    """One expectation on one column of one split."""

    name: str
    expectation: str
    """Type of the Great Expectations expectation."""
    column: str | None
    severity: Severity
    remedy: str
    description: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    tolerated: float = 0.0
    """Share of rows that may break it."""


def build_checks(spec: AdapterSpec, split: Split, usual_len: int) -> list[Check]:
    """Every check of one split. `usual_len` is the 95th percentile of its lengths in tokens."""
    checks = [
        *_shape(spec, split),
        *_lengths(spec, split, usual_len),
        *_repetitions(spec, split),
        *_leaks(spec, split),
        *_content(),
        *_own(spec),
    ]
    if spec.evaluation.metric is Metric.ACCURACY:
        checks += _labels(split)
    return checks


def _shape(spec: AdapterSpec, split: Split) -> Iterator[Check]:
    for key, template in (("prompt", spec.prompt), ("completion", spec.completion)):
        for name in template_variables(template):
            yield Check(
                "columns_exist", "expect_column_to_exist", name, Severity.CRITICAL, f"add the column that {key} names"
            )
    for key, text, chars in (
        ("prompt", Column.PROMPT, Column.PROMPT_CHARS),
        ("completion", Column.COMPLETION, Column.COMPLETION_CHARS),
    ):
        remedy = f"remove the rows, or give the {key} template a default such as {{{{ column or '' }}}}"
        yield Check(
            f"{key}_not_null",
            "expect_column_values_to_not_be_null",
            text,
            Severity.CRITICAL,
            remedy,
            f"No {key} is made from a null value.",
        )
        yield Check(
            f"{key}_not_empty",
            "expect_column_values_to_be_between",
            chars,
            Severity.CRITICAL,
            f"remove the rows of {split} without {key}",
            f"No {key} is empty.",
            {"min_value": 1},
        )


def _lengths(spec: AdapterSpec, split: Split, usual_len: int) -> Iterator[Check]:
    max_len = spec.training.max_len
    longest = {"min_value": 1, "max_value": max_len}
    if split is Split.TEST:
        yield Check(
            "prompt_fits_max_len",
            "expect_column_values_to_be_between",
            Column.PROMPT_TOKENS,
            Severity.WARNING,
            "shorten the rows: the adapter never saw prompts of this length",
            f"Prompts have at most {max_len} tokens.",
            longest,
        )
    else:
        yield from _graded(
            Check(
                "fits_max_len",
                "expect_column_values_to_be_between",
                Column.TOKENS,
                Severity.WARNING,
                f"shorten the rows, or raise training.max_len above {max_len}: longer rows are not trained on",
                f"Prompt and completion have at most {max_len} tokens.",
                longest,
            ),
            MAX_TOO_LONG,
        )
    yield Check(
        "not_unusually_long",
        "expect_column_values_to_be_between",
        Column.TOKENS,
        Severity.WARNING,
        "look whether these rows are what they should be",
        f"No row is longer than {OUTLIER_FACTOR} times the 95th percentile.",
        {"max_value": OUTLIER_FACTOR * max(usual_len, 1)},
    )


def _repetitions(spec: AdapterSpec, split: Split) -> Iterator[Check]:
    duplicates = _flag(
        "no_duplicates",
        Column.DUPLICATE,
        Severity.WARNING,
        "remove the repeated rows",
        "No row repeats an earlier one.",
    )
    yield from _graded(duplicates, MAX_DUPLICATES) if split is Split.TRAIN else [duplicates]
    # Several wordings of one answer are usual in generation; several verdicts on one input are noise.
    severity = Severity.INFO if spec.evaluation.metric is Metric.ROUGE_L else Severity.WARNING
    yield _flag(
        "no_contradictions",
        Column.CONTRADICTION,
        severity,
        "decide on one completion for each input, unless several are right",
        "No input stands there with different completions.",
    )


def _leaks(spec: AdapterSpec, split: Split) -> Iterator[Check]:
    if split is not Split.TRAIN:
        remedy = "remove from train the rows that recur here, or raise dataset.max_leakage if they are few and harmless"
        not_in_train = _flag(
            "not_in_train", Column.IN_TRAIN, Severity.WARNING, remedy, "No input of this split stands in train."
        )
        yield from _graded(not_in_train, spec.dataset.max_leakage)
    if split is not Split.TEST:
        later = "validation or test" if split is Split.TRAIN else "test"
        yield _flag(
            "does_not_recur",
            Column.RECURS,
            Severity.WARNING,
            f"remove them from {split}: a run leaves them out",
            f"No input of {split} recurs in {later}.",
        )


def _labels(split: Split) -> Iterator[Check]:
    if split is not Split.TRAIN:
        unknown = _flag(
            "label_known",
            Column.UNKNOWN_LABEL,
            Severity.WARNING,
            "add train rows with these labels, or correct their spelling",
            "Every label of this split occurs in train.",
        )
        yield from _graded(unknown, MAX_UNKNOWN_LABELS)
    yield _flag(
        "label_spelt_as_others",
        Column.NEAR_MISS_LABEL,
        Severity.WARNING,
        "correct the spelling, case or spacing of the label",
        "No label is one edit away from a far more frequent one.",
    )


def _content() -> Iterator[Check]:
    for column, thing in _PERSONAL.items():
        yield _flag(
            f"no_{column.removeprefix('lorafleet.')}",
            column,
            Severity.WARNING,
            f"remove what looks like {'an' if thing[0] in 'eI' else 'a'} {thing}, unless it is made up",
            f"No text holds what looks like {'an' if thing[0] in 'eI' else 'a'} {thing}.",
        )
    yield _flag(
        "no_mojibake",
        Column.MOJIBAKE,
        Severity.WARNING,
        "decode the source file with its true encoding",
        "No text is wrongly decoded.",
    )


def _own(spec: AdapterSpec) -> Iterator[Check]:
    """The user's expectations, as the spec gives them; whether they exist is seen when they are made."""
    for index, expectation in enumerate(spec.expectations):
        arguments = {key: value for key, value in expectation.items() if key not in ("type", "severity")}
        kind = str(expectation.get("type", ""))
        yield Check(
            name=f"expectations.{index}" + (f" on {arguments['column']}" if "column" in arguments else ""),
            expectation=kind,
            column=None,
            severity=Severity(expectation.get("severity", Severity.CRITICAL)),
            remedy=f"mend the rows, or the spec's {kind}",
            arguments=arguments,
        )


def _flag(name: str, column: Column, severity: Severity, remedy: str, description: str) -> Check:
    return Check(
        name, "expect_column_values_to_be_in_set", column, severity, remedy, description, {"value_set": [False]}
    )


def _graded(check: Check, limit: float) -> Iterator[Check]:
    """Critical above the limit, a warning below."""
    description = f"{check.description} Above {100 * limit:.3g}% of the rows the dataset is refused."
    yield Check(
        check.name,
        check.expectation,
        check.column,
        Severity.CRITICAL,
        check.remedy,
        description,
        check.arguments,
        tolerated=limit,
    )
    yield check

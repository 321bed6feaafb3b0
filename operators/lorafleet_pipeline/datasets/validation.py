"""Runs the suite with Great Expectations and writes its Data Docs.

Results pass through an allow-list before anything is stored or rendered: no row's content reaches a
report, a page, a log or an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.lengths import LengthMeter
from lorafleet_pipeline.datasets.measurements import Column, measure
from lorafleet_pipeline.datasets.preparation import Assembly, RenderedSplit
from lorafleet_pipeline.datasets.report import MAX_ROW_NUMBERS, Finding, Severity, SplitSummary
from lorafleet_pipeline.datasets.suite import Check, build_checks
from lorafleet_pipeline.exceptions import InvalidSpec
from lorafleet_pipeline.spec import AdapterSpec, Metric

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.core import ExpectationSuiteValidationResult, ExpectationValidationResult, RunIdentifier
    from great_expectations.data_context import EphemeralDataContext
    from great_expectations.expectations.expectation import Expectation

_DOCS_SITE = "docs"
_COUNTS_ONLY = {"result_format": "SUMMARY", "partial_unexpected_count": 0}
_COUNTS = (
    "element_count",
    "unexpected_count",
    "unexpected_percent",
    "missing_count",
    "missing_percent",
    "unexpected_percent_total",
    "unexpected_percent_nonmissing",
)


@dataclass(frozen=True)
class Verdict:
    """What the suite says about every split."""

    findings: tuple[Finding, ...]
    expectations: int
    splits: dict[Split, SplitSummary]
    lengths_exact: bool


def judge(assembly: Assembly, spec: AdapterSpec, docs: Path, on_split: Callable[[Split], None]) -> Verdict:
    """Evaluate the suite on every split and write Data Docs.

    Args:
        assembly: every row of every split.
        spec: says what is expected.
        docs: folder that Data Docs are written to.
        on_split: called before each split.

    Raises:
        InvalidSpec: an expectation of the spec does not exist or does not fit the columns.
    """
    meter = LengthMeter.of(spec.base_model)
    context, run_id = _context(docs), _run_id(spec)
    findings: list[Finding] = []
    summaries: dict[Split, SplitSummary] = {}
    count = 0
    for split, rendered in assembly.splits.items():
        on_split(split)
        table = measure(assembly, split, meter, labelled=spec.evaluation.metric is Metric.ACCURACY)
        summaries[split] = _summary(table)
        checks = build_checks(spec, split, summaries[split].p95)
        results = _evaluate(context, run_id, spec.name, split, table, checks)
        count += len(checks)
        findings += _findings(split, rendered, table, checks, results)
    context.build_data_docs(site_names=[_DOCS_SITE])
    return Verdict(tuple(findings), count, summaries, meter.exact)


def _context(docs: Path) -> EphemeralDataContext:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.add_data_docs_site(
        _DOCS_SITE,
        {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "site_section_builders": {"profiling": "none"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)},
        },
    )
    return context


def _run_id(spec: AdapterSpec) -> RunIdentifier:
    from great_expectations.core import RunIdentifier

    return RunIdentifier(run_name=spec.name, run_time=datetime.now(UTC))


def _evaluate(
    context: EphemeralDataContext,
    run_id: RunIdentifier,
    name: str,
    split: Split,
    table: pd.DataFrame,
    checks: list[Check],
) -> list[ExpectationValidationResult]:
    """One result for each check, in their order, without row content."""
    import great_expectations as gx
    from great_expectations.data_context.types.resource_identifiers import (
        ExpectationSuiteIdentifier,
        ValidationResultIdentifier,
    )

    expectations = [_expectation(check, index, table) for index, check in enumerate(checks)]
    suite = context.suites.add(gx.ExpectationSuite(name=f"{name}-{split}", expectations=expectations))
    source = context.data_sources.add_pandas(f"{name}-{split}")
    batch = (
        source.add_dataframe_asset(str(split))
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": table})
    )
    outcome: ExpectationSuiteValidationResult = batch.validate(suite, result_format=_COUNTS_ONLY)
    for result in outcome.results:
        _strip(result)
    outcome.meta |= {"run_id": run_id, "validation_time": run_id.run_time, "batch_parameters": None}
    key = ValidationResultIdentifier(ExpectationSuiteIdentifier(suite.name), run_id, batch_identifier=batch.id)
    context.validation_results_store.store_validation_results(outcome, key)
    return sorted(outcome.results, key=lambda result: int(result.expectation_config.meta["check"]))


def _expectation(check: Check, index: int, table: pd.DataFrame) -> Expectation:
    from great_expectations.compatibility.pydantic import ValidationError
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import get_expectation_impl

    own = check.column is None
    arguments = check.arguments if own else {"column": str(check.column), **check.arguments}
    if check.tolerated:
        arguments = {**arguments, "mostly": 1 - check.tolerated}
    place = f"{check.name} ({check.expectation})"
    named = arguments.get("column")
    if own and isinstance(named, str) and named not in table.columns:
        raise InvalidSpec(f"{place} names column {named!r}, which is not there: correct the name or remove it")
    try:
        kind = get_expectation_impl(check.expectation)
        described = {"description": check.description} if check.description else {}
        return kind(**arguments, **described, severity=check.severity.value, meta={"check": index})
    except ExpectationNotFoundError as error:
        raise InvalidSpec(f"{place} is no expectation of Great Expectations: correct the type, or remove it") from error
    except (ValidationError, TypeError) as error:
        raise InvalidSpec(f"{place} has wrong arguments ({_keys(error)}): correct or remove them") from error


def _keys(error: Exception) -> str:
    findings = error.errors() if hasattr(error, "errors") else [{"loc": ("arguments",), "msg": str(error)}]
    return "; ".join(dict.fromkeys(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in findings))


def _strip(result: ExpectationValidationResult) -> None:
    """Keep counts only: aggregates such as a maximum, and messages of exceptions, quote the data."""
    given: dict[str, Any] = result.result
    # The renderer takes an unexpected_count without its percentage for a row-wise result, and fails.
    rowwise = "element_count" in given and "unexpected_percent" in given
    result.result = {name: given[name] for name in _COUNTS if name in given} if rowwise else {}
    if rowwise:
        result.result["partial_unexpected_list"] = []
    result.exception_info = {
        "raised_exception": _raised(result.exception_info),
        "exception_message": None,
        "exception_traceback": None,
    }


def _raised(info: dict[str, Any]) -> bool:
    """Whether the expectation could not be evaluated; the library nests what it knows by metric or not at all."""
    if "raised_exception" in info:
        return bool(info["raised_exception"])
    return any(_raised(nested) for nested in info.values() if isinstance(nested, dict))


def _findings(
    split: Split,
    rendered: RenderedSplit,
    table: pd.DataFrame,
    checks: list[Check],
    results: list[ExpectationValidationResult],
) -> list[Finding]:
    findings: list[Finding] = []
    refused: set[str] = set()
    for check, result in zip(checks, results, strict=True):
        if result.exception_info["raised_exception"]:
            raise InvalidSpec(
                f"{check.name} ({check.expectation}) cannot be evaluated on {split}: "
                "check its arguments and the types of its columns"
            )
        # The warning beside a critical expectation that failed would say the same again.
        if result.success or check.name in refused:
            continue
        if check.severity is Severity.CRITICAL and check.column is not None:
            refused.add(check.name)
        numbers = [rendered.rows[index].example.row for index in _unexpected(check, table)[:MAX_ROW_NUMBERS]]
        findings.append(
            Finding(
                check=check.name,
                expectation=check.expectation,
                split=split,
                severity=check.severity,
                rows=result.result.get("unexpected_count"),
                of=len(rendered.rows),
                tolerated=check.tolerated,
                remedy=check.remedy,
                row_numbers=tuple(numbers),
            )
        )
    return findings


def _unexpected(check: Check, table: pd.DataFrame) -> list[int]:
    """Indices of the rows that break a check of ours; those of the user's expectations are not looked for."""
    if check.column is None or check.expectation == "expect_column_to_exist":
        return []
    column = table[check.column]
    if check.expectation == "expect_column_values_to_not_be_null":
        wrong = column.isna()
    elif "value_set" in check.arguments:
        wrong = ~column.isin(check.arguments["value_set"])
    else:
        wrong = ~column.between(
            check.arguments.get("min_value", float("-inf")), check.arguments.get("max_value", float("inf"))
        )
    return [index for index, is_wrong in enumerate(wrong) if is_wrong]


def _summary(table: pd.DataFrame) -> SplitSummary:
    tokens = table[Column.TOKENS]
    return SplitSummary(
        rows=len(table),
        examples=0,
        median=round(tokens.quantile(0.5)),
        p95=round(tokens.quantile(0.95)),
        longest=int(tokens.max()),
    )

"""From a spec to rendered examples in three splits, and their files in the run folder.

Knows nothing of validation: `assemble` keeps every row, so that the suite sees what the user gave;
`write_prepared` leaves out what would spoil the comparison and counts it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lorafleet_contract.exceptions import InvalidTemplate
from lorafleet_contract.prompt import render_template, template_variables
from lorafleet_pipeline.datasets.dataset import Dataset, Example, Split, SplitFacts, examples_digest
from lorafleet_pipeline.datasets.identity import identity
from lorafleet_pipeline.datasets.leakage import Leakage, find_leakage
from lorafleet_pipeline.datasets.source import Source, SourceRow, load_source
from lorafleet_pipeline.datasets.split import split_indices
from lorafleet_pipeline.exceptions import DatasetUnreadable
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.storage import Storage

MANIFEST_FILE = "manifest.json"
LEAKED = "recurs in a later split"
OVER_LIMIT = "over dataset.limit"


@dataclass(frozen=True)
class RenderedRow:
    """A row with its example. The flags say that a null was printed as the word None."""

    values: Mapping[str, Any]
    example: Example
    null_prompt: bool
    null_completion: bool


@dataclass(frozen=True)
class RenderedSplit:
    """Every row of one split, rendered."""

    address: str
    file_bytes: int
    columns: tuple[str, ...]
    rows: tuple[RenderedRow, ...]

    @cached_property
    def identities(self) -> tuple[str, ...]:
        """Identity of each row's prompt."""
        return tuple(identity(row.example.prompt) for row in self.rows)


@dataclass(frozen=True)
class Assembly:
    """Every row of every split, before anything is left out."""

    splits: Mapping[Split, RenderedSplit]

    @cached_property
    def leakage(self) -> Leakage:
        """Inputs that stand in more than one split."""
        return find_leakage({split: rendered.identities for split, rendered in self.splits.items()})


def prepare(spec: AdapterSpec, run: RunFolder, settings: PlatformSettings) -> Dataset:
    """Load, split, render and write the dataset of a run.

    Raises:
        DatasetUnreadable: a file, a column or a split is wrong or missing.
        StorageError: an address cannot be read.
    """
    return write_prepared(assemble(spec, Storage(settings.s3)), spec, run)


def assemble(spec: AdapterSpec, storage: Storage) -> Assembly:
    """Load every split, taking from train those that have no address, and render all rows."""
    loaded = {Split.TRAIN: load_source(spec.dataset.train, storage)}
    for split, address in ((Split.VALIDATION, spec.dataset.validation), (Split.TEST, spec.dataset.test)):
        if address is not None:
            loaded[split] = load_source(address, storage)
    splits = {split: _render(spec, split, source) for split, source in loaded.items()}
    splits |= _taken_from_train(spec, splits)
    for split in Split:
        if not splits[split].rows:
            raise DatasetUnreadable(
                f"the {split} split is empty ({splits[split].address}): add rows, "
                f"or name another address in dataset.{split}"
            )
    return Assembly({split: splits[split] for split in Split})


def write_prepared(assembly: Assembly, spec: AdapterSpec, run: RunFolder) -> Dataset:
    """Leave out rows that recur in a later split, apply the limit, and write `dataset/`, whole or not at all."""
    leaked = {
        Split.TRAIN: assembly.leakage.train,
        Split.VALIDATION: assembly.leakage.validation_in_test,
        Split.TEST: frozenset[int](),
    }
    examples: dict[Split, tuple[Example, ...]] = {}
    facts: dict[Split, SplitFacts] = {}
    for split, rendered in assembly.splits.items():
        kept = [row.example for index, row in enumerate(rendered.rows) if index not in leaked[split]]
        removed = {LEAKED: len(rendered.rows) - len(kept)}
        if split is Split.TRAIN and spec.dataset.limit is not None:
            removed[OVER_LIMIT] = max(0, len(kept) - spec.dataset.limit)
            kept = _sample(kept, spec.dataset.limit, spec.dataset.seed)
        if not kept:
            raise DatasetUnreadable(
                f"the {split} split is empty once rows that recur in a later split are left out: "
                f"give dataset.{split} inputs of its own"
            )
        examples[split] = tuple(kept)
        removed = {reason: count for reason, count in removed.items() if count}
        facts[split] = SplitFacts(rendered.address, rendered.file_bytes, len(rendered.rows), len(kept), removed)
    dataset = Dataset(
        train=examples[Split.TRAIN],
        validation=examples[Split.VALIDATION],
        test=examples[Split.TEST],
        digest=examples_digest(examples),
        facts=facts,
    )
    _write(dataset, run.dataset)
    return dataset


def read_prepared(run: RunFolder) -> Dataset:
    """The dataset that an earlier step prepared.

    Raises:
        DatasetUnreadable: it is not there, or was changed since.
    """
    try:
        manifest = json.loads((run.dataset / MANIFEST_FILE).read_text(encoding="utf-8"))
        examples = {split: _read(run.dataset / split.file_name) for split in Split}
    except FileNotFoundError as error:
        raise DatasetUnreadable(f"{error.filename} does not exist: validate the run's dataset first") from error
    if examples_digest(examples) != manifest["digest"]:
        raise DatasetUnreadable(f"{run.dataset} was changed since it was validated: delete it and validate again")
    return Dataset(
        train=examples[Split.TRAIN],
        validation=examples[Split.VALIDATION],
        test=examples[Split.TEST],
        digest=manifest["digest"],
        facts={Split(name): SplitFacts.from_json(facts) for name, facts in manifest["splits"].items()},
    )


def _render(spec: AdapterSpec, split: Split, source: Source) -> RenderedSplit:
    templates = {"prompt": spec.prompt, "completion": spec.completion}
    wanted = {key: template_variables(template) for key, template in templates.items()}
    if source.rows:
        for key, variables in wanted.items():
            _require_columns(key, templates[key], variables, split, source)
    rows = tuple(_render_row(spec, wanted, source, row) for row in source.rows)
    return RenderedSplit(source.address, source.file_bytes, source.columns, rows)


def _require_columns(key: str, template: str, variables: Sequence[str], split: Split, source: Source) -> None:
    missing = [name for name in variables if name not in source.columns]
    if missing:
        raise DatasetUnreadable(
            f"{key} template {_shown(template)} names column {', '.join(map(repr, missing))}, which {split} at "
            f"{source.address} does not have: it has {', '.join(map(repr, source.columns))}"
        )


def _render_row(spec: AdapterSpec, wanted: Mapping[str, Sequence[str]], source: Source, row: SourceRow) -> RenderedRow:
    texts: dict[str, str] = {}
    nulls: dict[str, bool] = {}
    for key, template in (("prompt", spec.prompt), ("completion", spec.completion)):
        values = {name: row.values.get(name) for name in wanted[key]}
        try:
            texts[key] = render_template(template, values)
            # A template that treats null itself renders it unlike the word.
            words = {name: "None" if value is None else value for name, value in values.items()}
            nulls[key] = None in values.values() and texts[key] == render_template(template, words)
        except InvalidTemplate as error:
            raise DatasetUnreadable(
                f"{source.address}:{row.number}: the {key} template {_shown(template)} fails on this row "
                f"({type(error.__cause__ or error).__name__}): mend the row or the template"
            ) from None  # The cause may quote the row.
    variables = {name: row.values.get(name) for name in wanted["prompt"]}
    example = Example(texts["prompt"], texts["completion"], row.number, variables)
    return RenderedRow(row.values, example, nulls["prompt"], nulls["completion"])


def _taken_from_train(spec: AdapterSpec, splits: Mapping[Split, RenderedSplit]) -> dict[Split, RenderedSplit]:
    section = spec.dataset
    fractions = {Split.VALIDATION: section.validation_fraction, Split.TEST: section.test_fraction}
    absent = [split for split in fractions if split not in splits]
    source = splits[Split.TRAIN]
    if not absent or not source.rows:
        return {split: RenderedSplit(source.address, 0, source.columns, ()) for split in absent}
    for split in absent:
        if fractions[split] == 0:
            raise DatasetUnreadable(
                f"the {split} split is empty: give dataset.{split}, or set dataset.{split}_fraction above 0"
            )
    if sum(fractions[split] for split in absent) >= 1:
        raise DatasetUnreadable(
            "dataset.validation_fraction and dataset.test_fraction leave no train rows: let them sum to less than 1"
        )
    parts = split_indices(source.identities, [fractions[split] for split in absent], section.seed)
    return {
        split: RenderedSplit(source.address, source.file_bytes, source.columns, tuple(source.rows[i] for i in indices))
        for split, indices in zip([*absent, Split.TRAIN], parts, strict=True)
    }


def _sample(examples: list[Example], limit: int, seed: int) -> list[Example]:
    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{index}:{examples[index].prompt}".encode()).digest()

    chosen = sorted(sorted(range(len(examples)), key=rank)[:limit])
    return [examples[index] for index in chosen]


def _write(dataset: Dataset, folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for split in Split:
        lines = (json.dumps(example.to_json(), ensure_ascii=False, default=str) for example in dataset.split(split))
        (partial / split.file_name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (partial / MANIFEST_FILE).write_text(json.dumps(dataset.manifest(), indent=2), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _read(path: Path) -> tuple[Example, ...]:
    # Line feeds only: a prompt may hold Unicode's other line separators.
    lines = path.read_text(encoding="utf-8").split("\n")
    return tuple(Example.from_json(json.loads(line)) for line in lines if line)


def _shown(template: str) -> str:
    return repr(template if len(template) <= 60 else template[:57] + "...")

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorafleet_pipeline.datasets.dataset import Split
from lorafleet_pipeline.datasets.demo import TARGETS, NearCopies, build_docstring_dataset
from lorafleet_pipeline.datasets.docstrings import MAX_SOURCE_CHARS, DocumentedFunction, documented_functions
from lorafleet_pipeline.datasets.identity import normalised
from lorafleet_pipeline.datasets.preparation import assemble
from lorafleet_pipeline.exceptions import DatasetUnreadable
from lorafleet_pipeline.settings import S3Settings
from lorafleet_pipeline.spec import load_spec
from lorafleet_pipeline.storage import Storage
from tests.repository.sources import ROOT

Rows = dict[Split, list[dict[str, str]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docstrings")
    build_docstring_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> Rows:
    return {
        split: [json.loads(line) for line in (folder / split.file_name).read_text().split("\n") if line]
        for split in Split
    }


def test_every_split_is_large_enough(rows: Rows) -> None:
    assert 1400 <= len(rows[Split.TRAIN]) <= 3000
    assert TARGETS[Split.VALIDATION] <= len(rows[Split.VALIDATION]) < 150
    assert 250 <= len(rows[Split.TEST]) < 350
    assert len({row["module"].partition(".")[0] for row in rows[Split.TEST]}) >= 15


def test_no_package_source_or_summary_crosses_splits(rows: Rows) -> None:
    for facts in (
        lambda row: row["module"].partition(".")[0],
        lambda row: normalised(row["source"]),
        lambda row: normalised(row["summary"]),
    ):
        found = [{facts(row) for row in rows[split]} for split in Split]
        assert sum(map(len, found)) == len(set().union(*found))


def test_rows_are_short_sources_without_their_docstring(rows: Rows) -> None:
    for row in (row for split in Split for row in rows[split]):
        assert len(row["source"]) <= MAX_SOURCE_CHARS
        assert row["source"].removeprefix("async ").startswith("def "), row["name"]
        assert row["summary"].rstrip(".") not in row["source"]
        assert row["summary"].endswith(".")
        assert 4 <= len(row["summary"].split()) <= 18


def test_same_python_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    build_docstring_dataset(tmp_path)
    for split in Split:
        assert (tmp_path / split.file_name).read_bytes() == (folder / split.file_name).read_bytes()


def test_shipped_spec_fits_the_dataset(folder: Path) -> None:
    spec = load_spec(ROOT / "dags" / "adapters" / "docstrings.yaml")
    local = {split.value: str(folder / split.file_name) for split in Split}
    spec = spec.model_copy(update={"dataset": spec.dataset.model_copy(update=local)})
    assembly = assemble(spec, Storage(S3Settings()))
    assert not assembly.leakage.test
    assert not assembly.leakage.validation
    for row in assembly.splits[Split.TEST].rows:
        assert not row.example.prompt.endswith((" ", "\n"))
        assert row.example.completion.startswith(" ")
        assert row.example.completion.endswith(spec.evaluation.stop[0])
        assert spec.evaluation.stop[0] not in row.example.completion.rstrip("\n")


def _function(source: str, summary: str = "Do the thing at hand.") -> DocumentedFunction:
    return DocumentedFunction("m", "f", source, summary)


def test_asynchronous_twin_and_same_summary_are_near_copies() -> None:
    body = "    with self.lock:\n        value = self.queue.get()\n        return self.parse(value, strict=True)"
    copies = NearCopies()
    copies.add(_function(f"def read(self):\n{body}", "Read one value."))
    twin = body.replace("with", "async with").replace("self.queue", "await self.queue")
    assert copies.has_copy_of(_function(f"async def read(self):\n{twin}", "Wait for a value."))
    assert copies.has_copy_of(_function("def other(x):\n    return x * 2", "read ONE value"))
    assert not copies.has_copy_of(_function("def other(x):\n    return [y for y in x if y.ok]"))


def test_unfit_functions_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(
        "def good(values):\n"
        '    """Add up all the values."""\n'
        "    total = 0\n    for value in values:\n        total += value\n    return total\n\n\n"
        "def _private(values):\n"
        '    """Add up all the values."""\n'
        "    return sum(value for value in values)\n\n\n"
        "def old(values):\n"
        '    """Deprecated: add up all the values."""\n'
        "    return sum(value for value in values)\n\n\n"
        "def tiny():\n"
        '    """Return one as a number."""\n'
        "    return 1\n"
    )
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "module.py").write_text((tmp_path / "module.py").read_text())
    (found,) = documented_functions(tmp_path)
    assert found.name == "good"
    assert found.summary == "Add up all the values."
    assert found.source.startswith("def good(values):\n    total = 0\n")


def test_library_without_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnreadable, match=r"use a Python that ships its \.py files"):
        build_docstring_dataset(tmp_path / "out", library=tmp_path)

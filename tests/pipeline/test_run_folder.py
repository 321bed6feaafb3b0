from __future__ import annotations

from pathlib import Path

import pytest

from lorafleet_pipeline.run_folder import RunFolder


def test_paths_lie_in_the_folder_of_adapter_and_run(tmp_path: Path) -> None:
    run = RunFolder.of(tmp_path, "tickets", "local-1")
    assert run.path == tmp_path / "tickets" / "local-1"
    assert (run.adapter, run.run_key) == ("tickets", "local-1")
    paths = [run.spec_file, run.dataset, run.validation_file, run.docs, run.training, run.adapter_folder]
    paths += [run.training_result, run.evaluation, run.evaluation_report, run.gate_report, run.manifest]
    paths += [run.registration]
    assert len(set(paths)) == len(paths)
    assert all(path.is_relative_to(run.path) for path in paths)
    assert not run.path.exists()


@pytest.mark.parametrize(
    "key",
    ["manual__2026-01-01T00:00:00+00:00", "../../etc", "a/b", "", ".", "..", "x" * 200, "übung"],
)
def test_key_that_is_no_safe_file_name_becomes_one(tmp_path: Path, key: str) -> None:
    run = RunFolder.of(tmp_path, "tickets", key)
    assert run.path.parent == tmp_path / "tickets"
    assert run.path.resolve().parent == (tmp_path / "tickets").resolve()
    assert len(run.run_key) == 64
    assert RunFolder.of(tmp_path, "tickets", key) == run
    assert RunFolder.of(tmp_path, "tickets", key + "x") != run

"""`lorafleet register` as a user and as a program sees it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

from lorafleet_contract.digest import ADAPTER_FILES
from tests.pipeline.registry.fleet import GATE_KEY
from tests.pipeline.registry.prepared_run import prepare_run, spec_of
from tests.services import RunningMLflow


def test_evaluated_run_is_registered_and_one_that_is_not_is_an_error(
    mlflow_server: RunningMLflow, tmp_path: Path
) -> None:
    spec, adapter = spec_of(f"adapter-{uuid.uuid4().hex[:8]}"), tmp_path / "adapter"
    adapter.mkdir()
    for name in ADAPTER_FILES:
        (adapter / name).write_bytes(name.encode())
    spec_file = tmp_path / "spec.yaml"
    spec_file.write_text(spec.to_yaml())
    environment = {
        **os.environ,
        **mlflow_server.environment(),
        "LORAFLEET_HOME": str(tmp_path),
        "LORAFLEET_GATE_KEY": GATE_KEY,
    }

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lorafleet_cli.main", "register", str(spec_file), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    early = run()
    assert early.returncode == 1
    (line,) = early.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("is missing: run `lorafleet train` for this run")
    key = f"local-{spec.spec_digest[7:19]}"
    prepare_run(tmp_path / "work", spec, adapter, GATE_KEY, run_key=key, status="failed")
    made = run("--json")
    assert made.returncode == 0, made.stderr
    version = json.loads(made.stdout)
    assert (version["version"], version["gate_status"], version["is_new"]) == (1, "failed", True)
    assert version["uri"].startswith("s3://mlflow/")
    again = run()
    assert f"{spec.name} has version 1 (registered before)." in again.stdout
    assert "--waive" in again.stderr

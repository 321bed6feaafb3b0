"""Which version the demo speaks of."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lorafleet_contract.aliases import Alias
from lorafleet_pipeline.demo.demo import champion_of
from lorafleet_pipeline.exceptions import DemoError
from lorafleet_pipeline.registry.publish import RegisteredVersion
from lorafleet_pipeline.run_folder import RunFolder
from tests.pipeline.registry.fleet import settings_of

if TYPE_CHECKING:
    from tests.services import RunningMLflow


def test_figures_of_another_version_than_the_runs_are_not_shown(mlflow_server: RunningMLflow, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    settings = settings_of(mlflow_server.s3, tmp_path, mlflow_server.url, ())
    name, client = f"adapter-{uuid.uuid4().hex[:8]}", MlflowClient(settings.mlflow_url)
    client.create_registered_model(name)
    for _ in range(2):
        client.create_model_version(name, "s3://mlflow/nowhere", await_creation_for=0)
    folder = RunFolder.of(tmp_path, name, "run-1")
    folder.registration.parent.mkdir(parents=True)
    folder.registration.write_text(json.dumps(asdict(RegisteredVersion(name, 1, "d", "s3://x", None, "passed"))))
    with pytest.raises(DemoError, match=f"version 1 of {name}, and the champion is none"):
        champion_of(name, folder, settings)
    settings.registry().set_alias(name, Alias.CHAMPION, 2)
    with pytest.raises(DemoError, match=r"the champion is version 2: .*--force"):
        champion_of(name, folder, settings)
    settings.registry().set_alias(name, Alias.CHAMPION, 1)
    assert champion_of(name, folder, settings) == 1

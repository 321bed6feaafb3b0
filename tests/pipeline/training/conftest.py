"""A tiny random base model, and rows to train it on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorafleet_pipeline.spec import AdapterSpec
from tests.pipeline.training.prepared_run import make_spec, write_rows
from tests.serving.tiny_model import make_tiny_model

SpecFactory = Callable[..., AdapterSpec]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def spec_of(tiny_base: Path, tmp_path: Path) -> SpecFactory:
    """Makes a spec: `spec_of(training={"steps": 3})`."""
    folder = tmp_path / "rows"
    folder.mkdir()
    write_rows(folder)

    def make(**sections: Any) -> AdapterSpec:
        return make_spec(tiny_base, folder, **sections)

    return make

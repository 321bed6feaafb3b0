"""The dependency rules of the design, read off the source."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.repository.sources import PACKAGES, ROOT, imports, python_files

MAY_IMPORT: dict[str, set[str]] = {
    "lorafleet_contract": set(),
    "lorafleet_serving": {"lorafleet_contract"},
    "lorafleet_pipeline": {"lorafleet_contract", "lorafleet_serving"},
    "lorafleet_airflow": {"lorafleet_contract", "lorafleet_pipeline", "lorafleet_serving"},
    "lorafleet_plugin": {"lorafleet_contract", "lorafleet_pipeline", "lorafleet_airflow", "lorafleet_serving"},
    "lorafleet_cli": {"lorafleet_contract", "lorafleet_pipeline", "lorafleet_serving"},
}

SERVING_SEAMS = {
    "lorafleet_serving.client",
    "lorafleet_serving.engine.config",
    "lorafleet_serving.engine.engine",
    "lorafleet_serving.engine.request",
    "lorafleet_serving.exceptions",
}
"""What packages outside the pod may see of it: its client, and the engine with its plain data."""

PLUGIN_SEAMS = {"lorafleet_pipeline.registry", "lorafleet_pipeline.exceptions"}
"""What Airflow's plugin may see of the pipeline."""

HEAVY = {"torch", "transformers", "mlflow", "great_expectations", "peft", "boto3", "botocore", "bitsandbytes", "pandas"}
LIGHT_PACKAGES = ("lorafleet_airflow", "lorafleet_plugin", "lorafleet_cli", "lorafleet_contract")

ENGINE_FOLDERS = ("engine", "models", "layers", "kernels")
COMPILED = PACKAGES["lorafleet_serving"] / "kernels" / "cpu"
"""Operators that numba compiles; they are loaded where numba is."""
GRAMMARS = PACKAGES["lorafleet_serving"] / "engine"
"""Where llguidance may be named, inside the functions that a constrained request turns on."""
ENGINE_MAY_IMPORT = {
    "torch",
    "triton",
    "transformers",
    "safetensors",
    "numpy",
    "lorafleet_contract",
    "lorafleet_serving",
}


def _top(module: str) -> str:
    return module.partition(".")[0]


def _all_files() -> list[tuple[str, Path]]:
    return [(name, path) for name, folder in PACKAGES.items() for path in python_files(folder)]


def _label(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below_them(package: str) -> None:
    allowed = MAY_IMPORT[package] | {package}
    wrong = [
        f"{path.relative_to(ROOT)}: {found.module}"
        for path in python_files(PACKAGES[package])
        for found in imports(path)
        if _top(found.module) in PACKAGES and _top(found.module) not in allowed
    ]
    assert not wrong


def test_the_contract_needs_the_standard_library_alone() -> None:
    allowed = set(sys.stdlib_module_names) | {"lorafleet_contract"}
    wrong = [
        f"{path.name}: {found.module}"
        for path in python_files(PACKAGES["lorafleet_contract"])
        for found in imports(path)
        if _top(found.module) not in allowed and not (path.name == "prompt.py" and _top(found.module) == "jinja2")
    ]
    assert not wrong


def test_the_contract_imports_nothing_else_at_module_level() -> None:
    allowed = set(sys.stdlib_module_names) | {"lorafleet_contract"}
    files = python_files(PACKAGES["lorafleet_contract"])
    assert not [f for p in files for f in imports(p) if f.at_module_level and _top(f.module) not in allowed]


@pytest.mark.parametrize("package", ["lorafleet_pipeline", "lorafleet_airflow", "lorafleet_plugin", "lorafleet_cli"])
def test_the_pod_is_used_through_its_client_and_its_engine_alone(package: str) -> None:
    assert not _beside_the_seams(package, "lorafleet_serving", SERVING_SEAMS)


def test_the_plugin_sees_the_registry_of_the_pipeline_alone() -> None:
    assert not _beside_the_seams("lorafleet_plugin", "lorafleet_pipeline", PLUGIN_SEAMS)


def _beside_the_seams(package: str, used: str, seams: set[str]) -> list[str]:
    """What a package imports of another, but for modules that are a seam or lie below one."""
    return [
        f"{path.relative_to(ROOT)}: {found.module}"
        for path in python_files(PACKAGES[package])
        for found in imports(path)
        if _top(found.module) == used
        and found.module != used
        and not any(f"{found.module}.".startswith(f"{seam}.") for seam in seams)
    ]


@pytest.mark.parametrize("package", LIGHT_PACKAGES)
def test_light_packages_import_nothing_heavy_at_module_level(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {found.module}"
        for path in python_files(PACKAGES[package])
        for found in imports(path)
        if found.at_module_level and _top(found.module) in HEAVY
    ]
    assert not wrong


def test_the_engine_runs_where_no_web_framework_is_installed() -> None:
    allowed = set(sys.stdlib_module_names) | ENGINE_MAY_IMPORT
    folders = [PACKAGES["lorafleet_serving"] / name for name in ENGINE_FOLDERS]
    wrong = [
        f"{path.relative_to(ROOT)}: {found.module}"
        for folder in folders
        for path in python_files(folder)
        for found in imports(path)
        if _top(found.module) not in allowed
        and not (path.is_relative_to(COMPILED) and _top(found.module) in ("numba", "llvmlite"))
        and not (path.is_relative_to(GRAMMARS) and _top(found.module) == "llguidance" and not found.at_module_level)
    ]
    assert not wrong


def test_the_engine_runs_where_numba_is_not_installed() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {found.module}"
        for path in python_files(PACKAGES["lorafleet_serving"])
        for found in imports(path)
        if found.at_module_level
        and found.module.startswith("lorafleet_serving.kernels.cpu")
        and not path.is_relative_to(COMPILED)
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["lorafleet_pipeline", "lorafleet_serving", "lorafleet_contract", "lorafleet_cli"])
def test_only_the_provider_and_the_plugin_import_airflow(package: str) -> None:
    assert not [f for p in python_files(PACKAGES[package]) for f in imports(p) if _top(f.module) == "airflow"]


def test_dag_files_import_only_airflow_sdk_and_the_provider() -> None:
    wrong = [
        f"{path.name}: {found.module}"
        for path in python_files(ROOT / "dags")
        for found in imports(path)
        if not found.module.startswith(("airflow.sdk", "lorafleet_airflow", "__future__"))
        and _top(found.module) not in sys.stdlib_module_names
        and found.module != "airflow.sdk"
    ]
    assert not wrong

"""What Airflow learns about the provider is true."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest

from lorafleet_airflow.provider_info import get_provider_info
from lorafleet_airflow.settings import POD_CONN_TYPE, REGISTRY_CONN_TYPE
from tests.airflow_home import ROOT

INFO = get_provider_info()
AIRFLOW = Path(airflow.__file__).parent


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_it_fits_the_schema_that_airflow_reads_it_with() -> None:
    jsonschema.validate(INFO, json.loads((AIRFLOW / "provider_info.schema.json").read_text()))


def test_connection_forms_fit_the_schema_of_their_declaration() -> None:
    schema = json.loads((AIRFLOW / "provider.yaml.schema.json").read_text())
    connections = schema["properties"]["connection-types"]
    jsonschema.validate(INFO["connection-types"], {**connections, "definitions": schema.get("definitions", {})})


def test_the_package_is_the_distribution() -> None:
    # Airflow refuses every provider when one names another package than its own.
    distribution = importlib.metadata.distribution(INFO["package-name"])
    (entry,) = distribution.entry_points.select(group="apache_airflow_provider")
    assert entry.load() is get_provider_info


def test_every_named_module_and_class_exists() -> None:
    for section in ("operators", "hooks", "triggers"):
        for entry in INFO[section]:
            for module in entry["python-modules"]:
                importlib.import_module(module)
    for link in INFO["extra-links"]:
        assert _class(link).name


def test_every_operator_module_is_listed() -> None:
    files = (ROOT / "operators" / "lorafleet_airflow" / "operators").glob("*.py")
    names = {path.stem for path in files} - {"__init__", "platform", "step"}
    (listed,) = INFO["operators"]
    assert {module.rpartition(".")[2] for module in listed["python-modules"]} == names


@pytest.mark.parametrize("declared", INFO["connection-types"], ids=lambda item: str(item["connection-type"]))
def test_hooks_and_connection_types_agree(declared: dict[str, Any]) -> None:
    hook = _class(declared["hook-class-name"])
    assert (hook.conn_type, hook.hook_name) == (declared["connection-type"], declared["hook-name"])
    assert hook(**{hook.conn_name_attr: "other"}) is not None


def test_airflow_offers_both_connection_types_with_their_fields() -> None:
    from airflow.providers_manager import ProvidersManager
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

    hooks = ProvidersManagerTaskRuntime().hooks
    assert all(hooks[name] is not None for name in (REGISTRY_CONN_TYPE, POD_CONN_TYPE))
    token = ProvidersManager().connection_form_widgets[f"extra__{REGISTRY_CONN_TYPE}__token"]
    assert token.is_sensitive


def test_reading_it_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import lorafleet_airflow.provider_info as p; p.get_provider_info();"
        "new = {m.partition('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new - set(sys.stdlib_module_names) - {'lorafleet_airflow'}))"
    )
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == "[]"

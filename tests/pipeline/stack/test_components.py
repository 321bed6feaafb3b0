"""Which component is told what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lorafleet_airflow import settings as airflow_settings
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.stack import airflow_entities
from lorafleet_pipeline.stack.component import ComponentPlan
from lorafleet_pipeline.stack.components import STACK_ID, StackComponents
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.options import AIRFLOW_COMPONENTS, StackOptions
from lorafleet_pipeline.stack.ports import choose_ports
from lorafleet_pipeline.stack.secrets import Secrets


@pytest.fixture
def components(tmp_path: Path) -> StackComponents:
    home = StackHome(tmp_path)
    home.create()
    return StackComponents(
        home,
        StackOptions(),
        choose_ports(home.ports, {}, lambda port: False).ports,
        Secrets.load_or_create(home.secrets),
    )


def _plans(components: StackComponents) -> dict[str, ComponentPlan]:
    return {plan.name: plan for plan in components.plans("an-id")}


def test_client_environment_is_enough_for_the_platform_settings(components: StackComponents) -> None:
    settings = PlatformSettings.load(components.environment())
    assert settings.mlflow_url == components.mlflow.url
    assert settings.pods == (components.pod.url,)
    assert settings.s3.endpoint == components.s3.endpoint
    assert settings.s3.access_key_id == components.secrets.s3_platform_key
    assert settings.require_gate_key() == components.secrets.gate_key
    assert settings.adapters_dir == components.home.adapters
    assert settings.home == components.home.folder


def test_pod_is_given_the_key_that_cannot_write(components: StackComponents) -> None:
    environment = _plans(components)["pod"].environment
    assert environment["AWS_ACCESS_KEY_ID"] == components.secrets.s3_pod_key
    assert components.secrets.s3_platform_secret not in environment.values()


def test_mlflow_is_given_the_key_of_its_bucket_and_the_controller_that_of_the_audit_log(
    components: StackComponents,
) -> None:
    environment, secrets = _plans(components)["mlflow"].environment, components.secrets
    assert (environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"]) == (
        secrets.s3_mlflow_key,
        secrets.s3_mlflow_secret,
    )
    settings = PlatformSettings.load(environment)
    assert settings.audit_s3 == replace(
        settings.s3, access_key_id=secrets.s3_audit_key, secret_access_key=secrets.s3_audit_secret
    )
    assert {secrets.s3_platform_key, secrets.s3_platform_secret}.isdisjoint(environment.values())
    others = [plan for name, plan in _plans(components).items() if name != "mlflow"]
    assert not [plan.name for plan in others if secrets.s3_audit_secret in plan.environment.values()]


def test_no_component_is_given_a_secret_that_it_does_not_need(components: StackComponents) -> None:
    plans = _plans(components)
    shared = {"LORAFLEET_ADMIN_TOKEN", "LORAFLEET_GATE_KEY", "LORAFLEET_WEBHOOK_SECRET"}
    given = {name: shared & set(plan.environment) for name, plan in plans.items()}
    assert given["s3"] == set()
    assert given["mlflow"] == {"LORAFLEET_ADMIN_TOKEN", "LORAFLEET_WEBHOOK_SECRET"}
    assert given["pod"] == given["airflow-scheduler"] == shared
    assert not [name for name in plans["pod"].environment if name.startswith("AIRFLOW")]


def test_no_secret_stands_on_a_command_line(components: StackComponents) -> None:
    secrets = set(vars(components.secrets).values())
    for plan in _plans(components).values():
        assert not [argument for argument in plan.command if any(secret in argument for secret in secrets)]


def test_settings_of_other_services_in_the_users_shell_do_not_reach_the_stack(
    components: StackComponents, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {
        "AWS_SESSION_TOKEN": "cloud",
        "AWS_PROFILE": "work",
        "MLFLOW_TRACKING_TOKEN": "theirs",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "LORAFLEET_GATE_KEY": "theirs",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    for plan in _plans(components).values():
        assert {plan.environment.get(name) for name in foreign}.isdisjoint(foreign.values())


def test_every_process_carries_the_id_of_its_stack(components: StackComponents) -> None:
    assert {plan.environment[STACK_ID] for plan in _plans(components).values()} == {"an-id"}


def test_airflow_waits_for_its_database_and_for_nothing_else(components: StackComponents) -> None:
    plans = _plans(components)
    assert plans["airflow-api-server"].prepare is not None
    for name in AIRFLOW_COMPONENTS[1:]:
        assert plans[name].after_prepared == {"airflow-api-server"}
    assert not any(plan.requires for plan in plans.values())


def test_names_are_those_that_the_provider_looks_for() -> None:
    assert airflow_entities.TRAINING_POOL == airflow_settings.TRAINING_POOL
    assert airflow_entities.REGISTRY_CONNECTION == (
        airflow_settings.REGISTRY_CONN_ID,
        airflow_settings.REGISTRY_CONN_TYPE,
    )
    assert airflow_entities.POD_CONNECTION == (airflow_settings.POD_CONN_ID, airflow_settings.POD_CONN_TYPE)

"""What Airflow learns about this provider. Imports nothing: Airflow reads it before its own configuration is ready."""

from __future__ import annotations

from typing import Any

_NAME = "LoRAFleet"
_PACKAGE = "lorafleet_airflow"

_REGISTRY_CONNECTION: dict[str, Any] = {
    "connection-type": "lorafleet_mlflow",
    "hook-name": "LoRAFleet registry (MLflow)",
    "hook-class-name": f"{_PACKAGE}.hooks.registry.LoRAFleetRegistryHook",
    "ui-field-behaviour": {
        "hidden-fields": ["schema", "extra"],
        "relabeling": {"host": "Tracking address", "login": "User"},
        "placeholders": {"host": "http://mlflow:5000"},
    },
    "conn-fields": {
        "token": {
            "label": "Bearer token",
            "description": "Sent instead of user and password where it is set",
            "schema": {"type": ["string", "null"], "format": "password"},
        },
        "timeout_s": {
            "label": "Timeout in seconds",
            "description": "Longest wait for one answer",
            "schema": {"type": ["number", "null"], "minimum": 0.1},
        },
    },
}

_POD_CONNECTION: dict[str, Any] = {
    "connection-type": "lorafleet_pod",
    "hook-name": "LoRAFleet serving pods",
    "hook-class-name": f"{_PACKAGE}.hooks.pod.LoRAFleetPodHook",
    "ui-field-behaviour": {
        "hidden-fields": ["schema", "login", "extra"],
        "relabeling": {"host": "Pod address", "password": "Admin token"},
        "placeholders": {"host": "http://pod:8000"},
    },
    "conn-fields": {
        "urls": {
            "label": "Further pods",
            "description": "Addresses of the other replicas, separated by commas",
            "schema": {"type": ["string", "null"]},
        },
    },
}


def get_provider_info() -> dict[str, Any]:
    """The provider's description, after Airflow's `provider_info.schema.json`."""
    return {
        "package-name": "lorafleet",
        "name": _NAME,
        "description": "Trains LoRA adapters from datasets, registers them in MLflow and promotes them into serving.",
        "integrations": [{"integration-name": _NAME, "tags": ["service"]}],
        "operators": [
            {
                "integration-name": _NAME,
                "python-modules": [
                    f"{_PACKAGE}.operators.{name}"
                    for name in (
                        "approve",
                        "broken_spec",
                        "confirm",
                        "evaluate",
                        "promote",
                        "reconcile",
                        "register",
                        "train",
                        "validate",
                    )
                ],
            }
        ],
        "hooks": [
            {
                "integration-name": _NAME,
                "python-modules": [f"{_PACKAGE}.hooks.registry", f"{_PACKAGE}.hooks.pod"],
            }
        ],
        "triggers": [{"integration-name": _NAME, "python-modules": [f"{_PACKAGE}.triggers.registry"]}],
        "connection-types": [_REGISTRY_CONNECTION, _POD_CONNECTION],
        "extra-links": [f"{_PACKAGE}.links.mlflow.MLflowRunLink", f"{_PACKAGE}.links.mlflow.ModelVersionLink"],
    }

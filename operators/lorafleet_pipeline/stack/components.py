"""The stack's components, made from a home folder, its options, ports and secrets.

Here alone is decided which component is told what: each gets the addresses of the others and the secrets it
needs, and no more. The pod reads S3 with a key that cannot write, and MLflow's opens the bucket of artifacts alone; the
controller inside MLflow has one of its own, with which it can only write the audit log.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lorafleet_pipeline.base_models import base_model_folder
from lorafleet_pipeline.settings import AUDIT_KEY, AUDIT_SECRET
from lorafleet_pipeline.stack.airflow import Airflow, AirflowSecrets
from lorafleet_pipeline.stack.component import ComponentPlan
from lorafleet_pipeline.stack.home import StackHome
from lorafleet_pipeline.stack.mlflow_server import MLflowServer, mlflow_client_environment
from lorafleet_pipeline.stack.options import StackOptions
from lorafleet_pipeline.stack.pod import Pod
from lorafleet_pipeline.stack.ports import LOOPBACK
from lorafleet_pipeline.stack.seaweedfs import ARTIFACT_BUCKET, PORT_NAMES, S3Keys, SeaweedFS
from lorafleet_pipeline.stack.secrets import Secrets

STACK_ID = "LORAFLEET_STACK_ID"
"""Stands in the environment of every process of a running stack, and of what those start."""

_SECRETS = frozenset({"LORAFLEET_ADMIN_TOKEN", "LORAFLEET_GATE_KEY", "LORAFLEET_WEBHOOK_SECRET"})


@dataclass(frozen=True)
class StackComponents:
    """Every component of one stack."""

    home: StackHome
    options: StackOptions
    ports: Mapping[str, int]
    secrets: Secrets = field(repr=False)

    def plans(self, stack_id: str) -> list[ComponentPlan]:
        """The chosen components, each marked with the stack's id."""
        chosen = set(self.options.components)
        plans = [self.s3.plan()] if "s3" in chosen else []
        plans += [self.mlflow.plan()] if "mlflow" in chosen else []
        plans += [self.pod.plan()] if "pod" in chosen else []
        if any(name.startswith("airflow-") for name in chosen):
            plans += [plan for plan in self.airflow.plans() if plan.name in chosen]
        return [self._within(plan, chosen, stack_id) for plan in plans]

    def environment(self) -> dict[str, str]:
        """What a client of the whole platform needs: the content of `stack.env`."""
        return {
            **self._addresses(),
            **self._shared_secrets(_SECRETS),
            **self._s3_environment(self.s3.platform),
            **self._mlflow_client(),
            "LORAFLEET_HOME": str(self.home.folder),
            "LORAFLEET_WORK_DIR": str(self.home.work),
            "LORAFLEET_DATASETS_URL": "s3://datasets",
            "LORAFLEET_DOCS_URL": "s3://datadocs",
            "LORAFLEET_AUDIT_URL": "s3://audit",
        }

    @property
    def s3(self) -> SeaweedFS:
        """The S3 server."""
        return SeaweedFS(
            folder=self.home.folder / "s3",
            ports={name: self.ports[name] for name in PORT_NAMES},
            platform=S3Keys(self.secrets.s3_platform_key, self.secrets.s3_platform_secret),
            pod=S3Keys(self.secrets.s3_pod_key, self.secrets.s3_pod_secret),
            mlflow=S3Keys(self.secrets.s3_mlflow_key, self.secrets.s3_mlflow_secret),
            audit=S3Keys(self.secrets.s3_audit_key, self.secrets.s3_audit_secret),
            log=self.home.log("s3"),
        )

    @property
    def mlflow(self) -> MLflowServer:
        """The MLflow server, with our controller inside."""
        return MLflowServer(
            folder=self.home.folder / "mlflow",
            port=self.ports["mlflow"],
            s3_endpoint=self.s3.endpoint,
            keys=self.s3.mlflow,
            log=self.home.log("mlflow"),
            app_name="lorafleet",
            environment={
                **self._addresses(),
                **self._shared_secrets({"LORAFLEET_ADMIN_TOKEN", "LORAFLEET_WEBHOOK_SECRET"}),
                **self._s3_environment(self.s3.mlflow),
                **self._audit_keys(),
                "LORAFLEET_S3_ENDPOINT": self.s3.endpoint,
                "LORAFLEET_HOME": str(self.home.folder),
                "LORAFLEET_WORK_DIR": str(self.home.work),
                "LORAFLEET_AUDIT_URL": "s3://audit",
            },
        )

    @property
    def airflow(self) -> Airflow:
        """Airflow's four components; its tasks act for the whole platform."""
        chosen = self.options.components
        return Airflow(
            folder=self.home.folder / "airflow",
            port=self.ports["airflow"],
            dags=self.options.dags_folder,
            secrets=AirflowSecrets(
                self.secrets.airflow_password,
                self.secrets.airflow_jwt_secret,
                self.secrets.airflow_api_secret,
                self.secrets.airflow_fernet_key,
            ),
            log=self.home.log,
            environment=self.environment(),
            registry_url=self.mlflow.url if "mlflow" in chosen else None,
            pod_url=self.pod.url if "pod" in chosen else None,
        )

    @property
    def pod(self) -> Pod:
        """The serving pod."""
        keys = self.s3.pod
        environment = {**self._addresses(), **self._shared_secrets(_SECRETS), **self._s3_environment(keys)}
        if "s3" in self.options.components:
            environment["LORAFLEET_S3_BUCKETS"] = ARTIFACT_BUCKET
        return Pod(
            folder=self.home.folder / "pod",
            port=self.ports["pod"],
            model=self.options.model,
            model_folder=base_model_folder(self.options.model),
            log=self.home.log("pod"),
            environment={**environment, "LORAFLEET_HOME": str(self.home.folder)},
        )

    def _within(self, plan: ComponentPlan, chosen: set[str], stack_id: str) -> ComponentPlan:
        return replace(
            plan,
            environment={**plan.environment, STACK_ID: stack_id},
            requires=plan.requires & chosen,
            after_prepared=plan.after_prepared & chosen,
        )

    def _addresses(self) -> dict[str, str]:
        """Addresses of the chosen components; of the others, what the user's own environment says stays."""
        chosen = self.options.components
        addresses = {"LORAFLEET_ADAPTERS_DIR": str(self.home.adapters)}
        if "mlflow" in chosen:
            addresses["LORAFLEET_MLFLOW_URL"] = f"http://{LOOPBACK}:{self.ports['mlflow']}"
        if "pod" in chosen:
            addresses["LORAFLEET_PODS"] = f"http://{LOOPBACK}:{self.ports['pod']}"
            addresses["LORAFLEET_BASE_MODEL"] = str(base_model_folder(self.options.model))
        return addresses

    def _shared_secrets(self, names: set[str] | frozenset[str]) -> dict[str, str]:
        values = {
            "LORAFLEET_ADMIN_TOKEN": self.secrets.admin_token,
            "LORAFLEET_GATE_KEY": self.secrets.gate_key,
            "LORAFLEET_WEBHOOK_SECRET": self.secrets.webhook_secret,
        }
        return {name: value for name, value in values.items() if name in names}

    def _s3_environment(self, keys: S3Keys) -> dict[str, str]:
        if "s3" in self.options.components:
            return {"LORAFLEET_S3_ENDPOINT": self.s3.endpoint, **keys.environment()}
        return {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "LORAFLEET_S3_"))}

    def _audit_keys(self) -> dict[str, str]:
        """The controller's own keys, under names at which MLflow's artifact code does not look."""
        if "s3" in self.options.components:
            return {AUDIT_KEY: self.s3.audit.access_key, AUDIT_SECRET: self.s3.audit.secret_key}
        return {name: os.environ[name] for name in (AUDIT_KEY, AUDIT_SECRET) if name in os.environ}

    def _mlflow_client(self) -> dict[str, str]:
        if not {"s3", "mlflow"} <= set(self.options.components):
            return {}
        return mlflow_client_environment(self.mlflow.url, self.s3.endpoint)

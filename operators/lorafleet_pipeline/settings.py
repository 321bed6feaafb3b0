"""Settings of the platform: where registry, storage and pods are, and the shared secrets.

Read once at start from `LORAFLEET_*` variables, and from MLflow's and AWS's own for credentials; what the
environment does not say is taken from `stack.env` in the home folder, which `lorafleet up` writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorafleet_contract.registry import RegistryClient, RegistryEndpoint, holds_credentials
from lorafleet_pipeline.exceptions import InvalidSetting

STACK_ENV_FILE = "stack.env"
AUDIT_KEY = "LORAFLEET_AUDIT_S3_KEY"
AUDIT_SECRET = "LORAFLEET_AUDIT_S3_SECRET"
_S3_CREDENTIALS = ("AWS_", AUDIT_KEY, AUDIT_SECRET)


@dataclass(frozen=True)
class S3Settings:
    """How S3 is reached. No endpoint means AWS; no keys mean the ordinary credential chain."""

    endpoint: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    region: str = "us-east-1"
    session_token: str | None = field(default=None, repr=False)
    """What temporary credentials have beside the pair of keys."""


@dataclass(frozen=True)
class PlatformSettings:
    """Settings shared by the command line, the pipeline's steps and the Airflow operators."""

    home: Path
    work_dir: Path
    mlflow_url: str
    mlflow_username: str | None = None
    mlflow_password: str | None = field(default=None, repr=False)
    mlflow_token: str | None = field(default=None, repr=False)
    pods: tuple[str, ...] = ()
    s3: S3Settings = field(default_factory=S3Settings)
    datasets_url: str = "s3://datasets"
    docs_url: str = "s3://datadocs"
    audit_url: str = "s3://audit"
    audit_s3: S3Settings | None = None
    """How the controller reaches the audit log, where it has keys of its own for it; else as all the rest."""
    adapters_dir: Path | None = None
    gate_key: str = field(default="", repr=False)
    admin_token: str = field(default="", repr=False)
    webhook_secret: str = field(default="", repr=False)

    @classmethod
    def load(
        cls, environ: Mapping[str, str] | None = None, home: Path | None = None, *, registry_required: bool = True
    ) -> PlatformSettings:
        """Read the settings. Without a registry, `mlflow_url` is empty, if that is allowed.

        Raises:
            InvalidSetting: no registry is configured and no stack has been started in the home folder; its address
                holds credentials; or of the audit log's pair of keys, one is missing.
        """
        given = os.environ if environ is None else environ
        home = home or Path(given.get("LORAFLEET_HOME") or "~/.lorafleet").expanduser()
        values = merged_environment(read_env_file(home / STACK_ENV_FILE), given)
        mlflow_url = values.get("LORAFLEET_MLFLOW_URL", "")
        if not mlflow_url and registry_required:
            raise InvalidSetting(
                f"no registry is configured: set LORAFLEET_MLFLOW_URL, or start the embedded stack of {home} "
                "with `lorafleet up`"
            )
        if holds_credentials(mlflow_url):
            raise InvalidSetting(
                "LORAFLEET_MLFLOW_URL holds a user or password: leave them out of it, and set MLFLOW_TRACKING_USERNAME "
                "and MLFLOW_TRACKING_PASSWORD"
            )
        adapters_dir = values.get("LORAFLEET_ADAPTERS_DIR")
        return cls(
            home=home,
            work_dir=Path(values.get("LORAFLEET_WORK_DIR") or home / "work").expanduser(),
            mlflow_url=mlflow_url,
            mlflow_username=values.get("MLFLOW_TRACKING_USERNAME") or None,
            mlflow_password=values.get("MLFLOW_TRACKING_PASSWORD") or None,
            mlflow_token=values.get("MLFLOW_TRACKING_TOKEN") or None,
            pods=tuple(url.strip().rstrip("/") for url in values.get("LORAFLEET_PODS", "").split(",") if url.strip()),
            s3=_s3(values),
            datasets_url=values.get("LORAFLEET_DATASETS_URL", cls.datasets_url).rstrip("/"),
            docs_url=values.get("LORAFLEET_DOCS_URL", cls.docs_url).rstrip("/"),
            audit_url=values.get("LORAFLEET_AUDIT_URL", cls.audit_url).rstrip("/"),
            audit_s3=_audit_s3(values),
            adapters_dir=Path(adapters_dir).expanduser() if adapters_dir else None,
            gate_key=values.get("LORAFLEET_GATE_KEY", ""),
            admin_token=values.get("LORAFLEET_ADMIN_TOKEN", ""),
            webhook_secret=values.get("LORAFLEET_WEBHOOK_SECRET", ""),
        )

    def environ(self) -> dict[str, str]:
        """The variables that `load` reads these settings back from, for a process of our own. Holds secrets."""
        values = {
            "LORAFLEET_HOME": str(self.home),
            "LORAFLEET_WORK_DIR": str(self.work_dir),
            "LORAFLEET_MLFLOW_URL": self.mlflow_url,
            "LORAFLEET_PODS": ",".join(self.pods),
            "LORAFLEET_DATASETS_URL": self.datasets_url,
            "LORAFLEET_DOCS_URL": self.docs_url,
            "LORAFLEET_AUDIT_URL": self.audit_url,
            "LORAFLEET_ADAPTERS_DIR": str(self.adapters_dir or ""),
            "LORAFLEET_GATE_KEY": self.gate_key,
            "LORAFLEET_ADMIN_TOKEN": self.admin_token,
            "LORAFLEET_WEBHOOK_SECRET": self.webhook_secret,
            "LORAFLEET_S3_ENDPOINT": self.s3.endpoint or "",
            "AWS_DEFAULT_REGION": self.s3.region,
        }
        audit_s3 = self.audit_s3 or S3Settings()
        keys = {
            "AWS_ACCESS_KEY_ID": self.s3.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.s3.secret_access_key,
            AUDIT_KEY: audit_s3.access_key_id,
            AUDIT_SECRET: audit_s3.secret_access_key,
        }
        if self.s3.access_key_id:
            # Even if empty: a token in the process's own environment belongs to other keys.
            values["AWS_SESSION_TOKEN"] = self.s3.session_token or ""
        return values | {name: value for name, value in keys.items() if value} | self.mlflow_credentials()

    def mlflow_credentials(self) -> dict[str, str]:
        """The variables from which MLflow's own client takes its credentials."""
        values = {
            "MLFLOW_TRACKING_USERNAME": self.mlflow_username,
            "MLFLOW_TRACKING_PASSWORD": self.mlflow_password,
            "MLFLOW_TRACKING_TOKEN": self.mlflow_token,
        }
        return {name: value for name, value in values.items() if value}

    def registry_endpoint(self, caller: Mapping[str, str] | None = None) -> RegistryEndpoint:
        """Where the registry is, and with which credentials `caller` asks it."""
        return RegistryEndpoint(
            self.mlflow_url,
            username=self.mlflow_username,
            password=self.mlflow_password,
            token=self.mlflow_token,
            caller=caller or {},
        )

    def registry(self, caller: Mapping[str, str] | None = None) -> RegistryClient:
        """A client of the registry; `caller` are headers that tell its audit log who calls."""
        return RegistryClient(self.registry_endpoint(caller))

    def require_gate_key(self) -> str:
        """The key that signs gate reports.

        Raises:
            InvalidSetting: it is not set.
        """
        if not self.gate_key:
            raise InvalidSetting("LORAFLEET_GATE_KEY is not set: set it to the key that the pods verify gates with")
        return self.gate_key


def read_env_file(path: Path) -> dict[str, str]:
    """Read `KEY=value` lines; an absent file is empty.

    Raises:
        InvalidSetting: the file is no text, or a line is not of that form.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSetting(f"{path} is no text: delete it, and `lorafleet up` writes it anew") from error
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator:
            raise InvalidSetting(
                f"{path}:{number} is not KEY=value: mend the line, or delete the file and `lorafleet up`"
            )
        values[name.strip()] = value.strip()
    return values


def merged_environment(written: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The environment over the stack's file; but credentials come from where the address does that they are for."""
    endpoint, registry = "LORAFLEET_S3_ENDPOINT", "LORAFLEET_MLFLOW_URL"
    if endpoint in written and endpoint not in given:
        given = _without(given, *_S3_CREDENTIALS)
    elif given.get(endpoint) != written.get(endpoint) or "AWS_ACCESS_KEY_ID" in given:
        # Half of one account's credentials and half of another's are refused by both.
        written = _without(written, *_S3_CREDENTIALS)
    if registry in written and registry not in given:
        given = _without(given, "MLFLOW_TRACKING_")
    return {**written, **given}


def _without(values: Mapping[str, str], *prefixes: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if not name.startswith(prefixes)}


def _s3(values: Mapping[str, str]) -> S3Settings:
    return S3Settings(
        endpoint=values.get("LORAFLEET_S3_ENDPOINT") or None,
        access_key_id=values.get("AWS_ACCESS_KEY_ID") or None,
        secret_access_key=values.get("AWS_SECRET_ACCESS_KEY") or None,
        region=values.get("AWS_DEFAULT_REGION") or S3Settings.region,
        session_token=values.get("AWS_SESSION_TOKEN") or None,
    )


def _audit_s3(values: Mapping[str, str]) -> S3Settings | None:
    key, secret = values.get(AUDIT_KEY), values.get(AUDIT_SECRET)
    if bool(key) != bool(secret):
        missing, present = (AUDIT_SECRET, AUDIT_KEY) if key else (AUDIT_KEY, AUDIT_SECRET)
        raise InvalidSetting(f"{present} is set without {missing}: set both, or neither to use AWS_ACCESS_KEY_ID")
    return replace(_s3(values), access_key_id=key, secret_access_key=secret, session_token=None) if key else None

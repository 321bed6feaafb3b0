"""Files at addresses: `s3://bucket/key`, or a path of this machine.

The one module of the pipeline that speaks to S3; its errors name the address and the remedy.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lorafleet_pipeline.exceptions import ObjectMissing, StorageDenied, StorageError, StorageUnreachable
from lorafleet_pipeline.settings import S3Settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DENIED = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "401", "ExpiredToken", "InvalidToken"}
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "404", "NotFound"})


class Storage:
    """Reads and writes addresses. S3 is touched only when an address names it."""

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings

    @cached_property
    def client(self) -> S3Client:
        """The boto3 client, made when first needed."""
        import boto3
        from botocore.config import Config

        settings = self._settings
        config = Config(
            signature_version="s3v4",
            connect_timeout=5,
            read_timeout=60,
            retries={"max_attempts": 4, "mode": "standard"},
            s3={"addressing_style": "path"},
        )
        try:
            return boto3.client(
                "s3",
                endpoint_url=settings.endpoint,
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=settings.secret_access_key,
                aws_session_token=settings.session_token,
                region_name=settings.region,
                config=config,
            )
        except ValueError as error:
            raise StorageUnreachable(
                f"{settings.endpoint!r} is no endpoint: set LORAFLEET_S3_ENDPOINT to http(s)://host:port"
            ) from error

    def read_bytes(self, address: str) -> bytes:
        """Content at an address."""
        if not is_s3(address):
            with _translated_local(address):
                return _local(address).read_bytes()
        bucket, key = split_s3(address)
        with _translated(address):
            return self.client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def write_bytes(self, address: str, data: bytes) -> None:
        """Put content at an address, replacing what is there: whole or not at all."""
        if not is_s3(address):
            path = Path(address).expanduser()
            with _translated_local(address), _replacing(path) as partial:
                partial.write_bytes(data)
            return
        bucket, key = split_s3(address)
        with _translated(address):
            self.client.put_object(Bucket=bucket, Key=key, Body=data)

    def list(self, address: str) -> list[str]:
        """Addresses of every file below a folder address, sorted; none where there is no such folder."""
        if not is_s3(address):
            return sorted(str(path) for path in Path(address).expanduser().rglob("*") if path.is_file())
        bucket, prefix = split_s3(address.rstrip("/") + "/", allow_empty_key=True)
        with _translated(address):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix.lstrip("/"))
            return sorted(f"s3://{bucket}/{item['Key']}" for page in pages for item in page.get("Contents", []))

    def download(self, address: str, path: Path) -> None:
        """Copy a file to this machine, whole or not at all."""
        if not is_s3(address):
            with _translated_local(address), _replacing(path) as partial:
                shutil.copyfile(_local(address), partial)
            return
        bucket, key = split_s3(address)
        with _translated_local(str(path)), _translated(address), _replacing(path) as partial:
            self.client.download_file(bucket, key, str(partial))

    def upload(self, path: Path, address: str) -> None:
        """Copy a file of this machine to an address."""
        if not is_s3(address):
            self.write_bytes(address, path.read_bytes())
            return
        bucket, key = split_s3(address)
        # Without its type, a browser would save a Data Docs page instead of showing it.
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        with _translated(address):
            self.client.upload_file(str(path), bucket, key, ExtraArgs={"ContentType": media_type})

    def upload_folder(self, folder: Path, address: str) -> None:
        """Copy every file of a folder below an address."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.upload(path, f"{address.rstrip('/')}/{path.relative_to(folder).as_posix()}")

    def delete_folder(self, address: str) -> None:
        """Remove every file below a folder address."""
        for file in self.list(address):
            if not is_s3(file):
                Path(file).unlink()
                continue
            bucket, key = split_s3(file)
            with _translated(file):
                self.client.delete_object(Bucket=bucket, Key=key)

    def ensure_bucket(self, address: str) -> None:
        """Make the bucket of an S3 address if it is not there."""
        if not is_s3(address):
            return
        bucket, _ = split_s3(address.rstrip("/") + "/", allow_empty_key=True)
        with _translated(address):
            if bucket not in {item["Name"] for item in self.client.list_buckets()["Buckets"]}:
                self.client.create_bucket(Bucket=bucket)


def is_s3(address: str) -> bool:
    """Whether an address lies on S3."""
    return address.startswith("s3://")


def split_s3(address: str, *, allow_empty_key: bool = False) -> tuple[str, str]:
    """Bucket and key of an S3 address.

    Raises:
        StorageError: it has no bucket or no key.
    """
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not bucket or not (key or allow_empty_key):
        raise StorageError(f"{address} is no S3 address: write s3://bucket/key")
    return bucket, key


def _local(address: str) -> Path:
    path = Path(address).expanduser()
    if not path.is_file():
        raise ObjectMissing(f"{address} does not exist: check the path")
    return path


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A neighbour to write to, which takes the file's place when it is complete and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _translated_local(address: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except PermissionError as error:
        raise StorageDenied(f"{address} is denied by the file system: check its owner and mode") from error
    except OSError as error:
        remedy = "free some space" if error.errno in _NO_SPACE else "check the path"
        raise StorageError(f"{address} failed ({error.strerror}): {remedy}") from error


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Around a step that writes files of its own below a folder.

    Raises:
        StorageError: the disk is full or read-only, or the folder belongs to someone else.
    """
    try:
        yield
    except OSError as error:
        # Errors of ours that are OSErrors too carry no number.
        if error.errno in _NO_SPACE:
            raise StorageError(f"{folder} cannot be written ({error.strerror}): free some space there") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageDenied(
                f"{error.filename or folder} is denied ({error.strerror}): correct its owner and mode, or set "
                "LORAFLEET_WORK_DIR to a folder of your own"
            ) from error
        raise


@contextmanager
def _translated(address: str) -> Iterator[None]:
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        PartialCredentialsError,
    )

    try:
        yield
    except ClientError as error:
        raise _refusal(address, error) from error
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise StorageDenied(f"{address} needs credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
    except ParamValidationError as error:
        raise StorageError(f"{address} is no valid S3 address: write s3://bucket/key") from error
    except Boto3Error as error:
        # boto3's transfers wrap the refusal of the service, which alone says what to do.
        cause = error.__context__
        if isinstance(cause, ClientError):
            raise _refusal(address, cause) from error
        raise StorageUnreachable(f"{address} could not be transferred: {_line(error)}") from error
    except BotoCoreError as error:
        raise StorageUnreachable(
            f"{address} cannot be reached ({_line(error)}): check LORAFLEET_S3_ENDPOINT and that the service runs"
        ) from error


def _refusal(address: str, error: Exception) -> StorageError:
    response = getattr(error, "response", {})
    code = str(response.get("Error", {}).get("Code", ""))
    if code in _MISSING:
        return ObjectMissing(f"{address} does not exist: check bucket and key")
    if code in _DENIED:
        return StorageDenied(f"{address} is denied ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return StorageError(f"{address} failed with {code}: {_line(error)}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())

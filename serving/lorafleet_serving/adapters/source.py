"""Where the artifacts of registered versions are read: S3, by boto3.

Knows addresses and objects, nothing about adapters.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError

from lorafleet_contract.backoff import Backoff
from lorafleet_contract.digest import document_digest
from lorafleet_serving.exceptions import AdapterRefusal, FetchFailed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_CONNECT_LIMIT_S = 3.0
_READ_LIMIT_S = 20.0
_ATTEMPTS = 3
"""In a row without a byte more."""
_BACKOFF = Backoff(first_s=0.2, longest_s=5.0)


@dataclass(frozen=True)
class StoredObject:
    """One object of a version's artifacts."""

    bucket: str
    key: str
    etag: str
    size: int
    scheme: str = "s3"
    """Of the source that reads it."""


class S3Source:
    """Reads from one S3 service, from some `buckets` or all. Safe to share between threads, as boto3's clients are.

    Whoever may write into the registry says where artifacts are; the credentials, which may reach more, are the pod's.
    """

    def __init__(
        self, endpoint: str | None, num_connections: int, buckets: Collection[str] = (), *, limit_s: float
    ) -> None:
        """`limit_s` is the longest time that one object may take."""
        self._buckets = buckets
        self._limit_s = limit_s
        # The standard mode waits between its attempts for a random, growing time.
        settings = Config(
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            connect_timeout=_CONNECT_LIMIT_S,
            read_timeout=_READ_LIMIT_S,
            max_pool_connections=num_connections,
        )
        self._client: S3Client = boto3.session.Session().client("s3", endpoint_url=endpoint, config=settings)

    def list(self, address: str) -> dict[str, StoredObject]:
        """Objects under an address, by their path relative to it.

        Raises:
            AdapterRefusal: the address is not one of S3, or in another bucket than those that are read.
            FetchFailed: S3 does not answer, or refuses.
        """
        bucket, prefix = _split(address)
        if self._buckets and bucket not in self._buckets:
            raise AdapterRefusal(
                f"artifacts are at {address!r}, and this pod reads from the bucket {', '.join(self._buckets)} alone: "
                "move them there, or name theirs in LORAFLEET_S3_BUCKETS"
            )
        found = {}
        try:
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
                if "IsTruncated" not in page:  # Cut off in its headers: nothing would look like no artifacts.
                    raise FetchFailed(f"cannot list {address}: the answer was cut off; it is tried again")
                for item in page.get("Contents", []):
                    stored = StoredObject(bucket, item["Key"], item["ETag"], item["Size"])
                    found[item["Key"].removeprefix(prefix)] = stored
        except (ClientError, BotoCoreError) as error:
            raise _failure(address, error) from error
        return found

    def read(self, stored: StoredObject) -> bytes:
        """The bytes of a small object.

        Raises:
            FetchFailed: S3 does not give it, or not whole, or it was exchanged meanwhile.
        """
        try:
            answer = self._client.get_object(Bucket=stored.bucket, Key=stored.key, IfMatch=stored.etag)
            with closing(answer["Body"]) as body:
                found = body.read(stored.size + 1)
            if len(found) != stored.size:
                raise IncompleteReadError(actual_bytes=len(found), expected_bytes=stored.size)
        except (ClientError, BotoCoreError) as error:
            raise _failure(_address(stored), error) from error
        return found

    def download(self, stored: StoredObject, target: Path) -> None:
        """Write an object to a file. What breaks off is gone on with where it broke.

        Raises:
            FetchFailed: S3 does not give it, or too slowly, or it was exchanged meanwhile; or the disk is full.
        """
        address = _address(stored)
        deadline = time.monotonic() + self._limit_s
        num_failures = 0
        try:
            with target.open("wb") as file:
                while (begun := file.tell()) < stored.size:
                    try:
                        self._append(stored, file, deadline)
                    except BotoCoreError as error:
                        num_failures = 1 if file.tell() > begun else num_failures + 1
                        if num_failures == _ATTEMPTS:
                            raise _failure(address, error) from error
                        _logger.warning("%s broke off at byte %d: %s", address, file.tell(), error)
                        time.sleep(random.uniform(0.5, 1.0) * _BACKOFF.pause_s(num_failures))
        except ClientError as error:
            raise _failure(address, error) from error
        except OSError as error:
            raise FetchFailed(f"cannot write {target}: {error}; free disk space or move the cache folder") from error

    def _append(self, stored: StoredObject, file: BinaryIO, deadline: float) -> None:
        """Write the rest of an object behind what is there of it."""
        begun = file.tell()
        # Of the object that was listed: parts of two would be one that nobody wrote.
        answer = self._client.get_object(
            Bucket=stored.bucket, Key=stored.key, IfMatch=stored.etag, Range=f"bytes={begun}-"
        )
        with closing(answer["Body"]) as body:
            if begun and not answer.get("ContentRange", "").startswith(f"bytes {begun}-"):
                file.seek(0)  # A store that knows no ranges sends all of it.
                file.truncate()
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                if file.tell() + len(chunk) > stored.size:
                    raise FetchFailed(f"{_address(stored)} has grown while it was read: it is looked at again")
                file.write(chunk)
                if time.monotonic() > deadline:
                    raise FetchFailed(
                        f"{_address(stored)} has {stored.size} bytes, {file.tell()} came within {self._limit_s:.0f} s: "
                        "see to the network, or raise --fetch-limit"
                    )
        if file.tell() < stored.size:  # Nobody said how long the answer would be, where its headers were cut off.
            raise IncompleteReadError(actual_bytes=file.tell(), expected_bytes=stored.size)


def _address(stored: StoredObject) -> str:
    return f"s3://{stored.bucket}/{stored.key}"


def stamp(objects: Mapping[str, StoredObject]) -> str:
    """A digest that changes when any of the objects does."""
    return document_digest({path: [item.etag, item.size] for path, item in objects.items()})


def _split(address: str) -> tuple[str, str]:
    scheme, _, rest = address.partition("://")
    bucket, _, prefix = rest.partition("/")
    if scheme != "s3" or not bucket or not prefix:
        raise AdapterRefusal(
            f"artifacts are at {address!r}, which is not s3://bucket/key: "
            "run MLflow with --default-artifact-root s3://... so that pods can read them"
        )
    return bucket, prefix.rstrip("/") + "/"


def _failure(address: str, error: Exception) -> FetchFailed:
    reason = str(error)
    if isinstance(error, ClientError) and error.response["Error"]["Code"] in _CREDENTIAL_CODES:
        reason += "; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
    return FetchFailed(f"cannot read {address}: {reason}")


_CREDENTIAL_CODES = frozenset({"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"})

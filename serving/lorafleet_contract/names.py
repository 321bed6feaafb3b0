"""Adapter names, and the ways in which a request may name an adapter.

`name` (champion, or a challenger that has a share) | `name@alias` | `name:version` | `s3://...` or an absolute path |
nothing (the base).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorafleet_contract.exceptions import InvalidName

MAX_NAME_LEN = 100
"""Longest adapter name; the limit that adapter routers on Kubernetes share."""

_MAX_REFERENCE_LEN = 4096
"""Longest reference; only an address comes near it."""
_MAX_VERSION_DIGITS = 18
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter of the registry, by alias or by version; with neither, whatever serves under the bare name."""

    name: str
    alias: str | None = None
    version: int | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}:{self.version}"
        return self.name if self.alias is None else f"{self.name}@{self.alias}"


@dataclass(frozen=True)
class AddressedAdapter:
    """An adapter outside the registry, by S3 address or absolute path (admin scope)."""

    address: str

    def __str__(self) -> str:
        return self.address


AdapterReference = NamedAdapter | AddressedAdapter


def check_adapter_name(name: str) -> str:
    """Return `name` unchanged.

    Raises:
        InvalidName: it is empty, too long, or holds a character outside `A-Za-z0-9_-`.
    """
    if len(name) > MAX_NAME_LEN:
        raise InvalidName(
            f"adapter name {name[:20]!r}... has {len(name)} characters, the limit is {MAX_NAME_LEN}: shorten it"
        )
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"adapter name {name!r} is not valid: use letters, digits, '-' and '_', starting with a letter or digit"
        )
    return name


def is_adapter_name(name: str) -> bool:
    """Whether `check_adapter_name` accepts it."""
    return len(name) <= MAX_NAME_LEN and _NAME.fullmatch(name) is not None


def parse_reference(text: str) -> AdapterReference:
    """Parse what a caller sent as `model` or `adapter_id`.

    Raises:
        InvalidName: the text is none of the accepted forms.
    """
    if len(text) > _MAX_REFERENCE_LEN:
        raise InvalidName(f"adapter {text[:20]!r}... has {len(text)} characters, the limit is {_MAX_REFERENCE_LEN}")
    if text.startswith(("s3://", "/")):
        return AddressedAdapter(text)
    if "@" in text:
        name, _, alias = text.partition("@")
        if not _ALIAS.fullmatch(alias):
            raise InvalidName(
                f"alias {alias!r} in {text!r} is not valid: use name@alias, for instance {name + '@champion'!r}"
            )
        return NamedAdapter(check_adapter_name(name), alias=alias)
    if ":" in text:
        name, _, version = text.partition(":")
        is_number = version.isascii() and version.isdigit() and len(version) <= _MAX_VERSION_DIGITS
        if not is_number or int(version) < 1:
            raise InvalidName(f"version {version!r} in {text!r} is not a positive number: use name:version")
        return NamedAdapter(check_adapter_name(name), version=int(version))
    return NamedAdapter(check_adapter_name(text))

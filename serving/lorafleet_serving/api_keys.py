"""The keys that callers show, as a file lists them by their digests: no key is kept anywhere."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from lorafleet_serving.engine.request import ANONYMOUS, PRIORITIES, SHADOW, Tenant
from lorafleet_serving.exceptions import InvalidSetting

ADMIN = Tenant("admin")
"""Who shows the admin token instead of a key."""
_TAKEN_NAMES = (ANONYMOUS.name, ADMIN.name, SHADOW.name)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_WEIGHT = 1000.0
_MAX_PATTERNS, _MAX_PATTERN_CHARACTERS = 100, 200
_MAX_PER_MINUTE = 10**9


class Scope(StrEnum):
    """What a key may do besides asking by name and alias."""

    VERSIONS = "versions"
    """Ask for `name:version`."""


@dataclass(frozen=True)
class ApiKey:
    """One key: whose requests it brings, and what these may do."""

    name: str
    sha256: str = field(repr=False)
    """Hex digest of the key."""
    weight: float = 1.0
    """Share of the engine, against the weights of the others."""
    max_priority: int = 0
    max_waiting: int | None = None
    """Requests that may wait at a time; None leaves it to the pod's own limit."""
    scopes: frozenset[Scope] = frozenset()
    models: tuple[str, ...] = ("*",)
    """Patterns, as of file names, of what may be asked for: names of adapters, and the base model's id."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together."""

    @property
    def tenant(self) -> Tenant:
        """Whom its requests are computed for."""
        return Tenant(self.name, self.weight, self.max_waiting)


class ApiKeys:
    """All keys of a pod."""

    def __init__(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = keys

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(self._keys)

    @property
    def tenants(self) -> list[Tenant]:
        """Whom requests are computed for."""
        return [key.tenant for key in self._keys]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a YAML or JSON file: `keys`, a list of objects with the fields of `ApiKey`.

        Raises:
            InvalidSetting: the file cannot be read, or an entry is wrong; names the entry, never a digest.
        """
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidSetting(f"api_keys is {path}, which cannot be read: {error}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            # The parser's own message quotes the file.
            raise InvalidSetting(f"api_keys is {path}, which is neither YAML nor JSON: see its syntax") from error
        entries = content.get("keys") if isinstance(content, dict) and set(content) == {"keys"} else None
        if not isinstance(entries, list) or not entries:
            raise InvalidSetting(f"api_keys is {path}, which must hold one field, keys: a list of at least one key")
        keys = tuple(_read_key(path, number, entry) for number, entry in enumerate(entries, start=1))
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in keys]
            if twice := [key.name for key in keys if values.count(getattr(key, what)) > 1]:
                raise InvalidSetting(f"api_keys {path}: two keys have one {what} ({', '.join(twice)}): make it unique")
        return cls(keys)

    def find(self, shown: str) -> ApiKey | None:
        """The key that somebody shows; takes as long whichever it is, and if it is none."""
        digest = hashlib.sha256(shown.encode()).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def _read_key(path: Path, number: int, entry: Any) -> ApiKey:
    known = {item.name for item in fields(ApiKey)}
    if not isinstance(entry, dict) or not {"name", "sha256"} <= set(entry) <= known:
        raise InvalidSetting(
            f"api_keys {path}, key {number}: it must have name and sha256, and may have {', '.join(sorted(known))}"
        )
    given = {"weight": 1.0, "max_priority": 0, "scopes": [], "models": ["*"], **entry}
    for what, (is_valid, limit) in _LIMITS.items():
        if what in given and not is_valid(given[what]):
            told = "" if what == "sha256" else f" is {str(given[what])[:100]!r}, it"
            raise InvalidSetting(f"api_keys {path}, key {number}: {what}{told} must be {limit}")
    read = {
        "weight": float(given["weight"]),
        "scopes": frozenset(map(Scope, given["scopes"])),
        "models": tuple(given["models"]),
    }
    return ApiKey(**{**given, **read})


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.fullmatch(value)) and value not in _TAKEN_NAMES


def _are_patterns(value: object) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= _MAX_PATTERNS
        and all(isinstance(item, str) and 1 <= len(item) <= _MAX_PATTERN_CHARACTERS for item in value)
    )


def _are_scopes(value: object) -> bool:
    return isinstance(value, list) and all(scope in list(Scope) for scope in value)


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _MAX_WEIGHT


def _is_allowance(value: object) -> bool:
    return value is None or (type(value) is int and 1 <= value <= _MAX_PER_MINUTE)


_LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_is_name, f"{_NAME.pattern}, no other's"),
    "sha256": (lambda value: isinstance(value, str) and bool(_DIGEST.fullmatch(value)), "64 hex digits: sha256sum"),
    "weight": (_is_weight, f"above 0 and at most {_MAX_WEIGHT:.0f}"),
    "max_priority": (
        lambda value: type(value) is int and value in PRIORITIES,
        f"in {PRIORITIES[0]} to {PRIORITIES[-1]}",
    ),
    "max_waiting": (lambda value: value is None or (type(value) is int and value >= 1), "at least 1"),
    "scopes": (_are_scopes, f"of {[*map(str, Scope)]}"),
    "models": (
        _are_patterns,
        f"1 to {_MAX_PATTERNS} patterns such as 'support-*', each of 1 to {_MAX_PATTERN_CHARACTERS} characters",
    ),
    "requests_per_minute": (_is_allowance, f"a whole number from 1 to {_MAX_PER_MINUTE}"),
    "tokens_per_minute": (_is_allowance, f"a whole number from 1 to {_MAX_PER_MINUTE}"),
}
"""What each field of an entry must be."""

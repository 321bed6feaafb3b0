"""A client of MLflow's registry REST interface, in the standard library.

The pod's image carries no MLflow, and importing MLflow's own client takes seconds, which a rollback
cannot wait for. This client speaks the few calls that promotion needs; logging models and runs stays
with MLflow's client. It knows nothing about adapters.

Aliases stand on the registered model only: MLflow leaves them empty on versions found by search.
"""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from lorafleet_contract.aliases import Stage
from lorafleet_contract.exceptions import RegistryError, RegistryNotFound, RegistryUnavailable

_API = "/api/2.0/mlflow/"
_PAGE_SIZE = 1000
_VERSIONS_PAGE_SIZE = 200
_CHANGES_PAGE_SIZE = 50
_CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
_REMEDIES = {
    401: f"; set {_CREDENTIALS}, to those of a user whom the registry knows",
    403: f"; ask its administrator for the permission, or set {_CREDENTIALS}, to those of a user who has it",
}


@dataclass(frozen=True)
class RegistryEndpoint:
    """Where the registry is, and with which credentials it is asked."""

    url: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    timeout_s: float = 10.0
    caller: Mapping[str, str] = field(default_factory=dict)
    """Headers that tell the registry's audit log who calls."""

    @property
    def headers(self) -> dict[str, str]:
        """Authorization header, if credentials are set, and the caller's."""
        # Of both, MLflow's client takes the password; two clients of one process must not be two users.
        if self.username and (self.password or not self.token):
            pair = f"{self.username}:{self.password or ''}".encode()
            return {**self.caller, "Authorization": f"Basic {base64.b64encode(pair).decode()}"}
        return {**self.caller, "Authorization": f"Bearer {self.token}"} if self.token else dict(self.caller)


def holds_credentials(url: str) -> bool:
    """Whether an address has a user or password in it, which errors that name the address would tell."""
    return "@" in url.partition("://")[2].partition("/")[0]


@dataclass(frozen=True)
class RegisteredModel:
    """One registered model with its aliases (alias to version number) and tags. Time is unix milliseconds."""

    name: str
    aliases: Mapping[str, int]
    tags: Mapping[str, str]
    created_at: int


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model. Times are unix milliseconds."""

    name: str
    version: int
    stage: Stage
    tags: Mapping[str, str]
    source: str
    run_id: str
    status: str
    created_at: int
    updated_at: int


class RegistryClient:
    """Calls to one registry. Safe to share between threads: it holds no connection.

    Every method raises `RegistryUnavailable` when the registry cannot be reached, `RegistryNotFound`
    when what it names does not exist, and `RegistryError` for any other refusal.
    """

    def __init__(self, endpoint: RegistryEndpoint) -> None:
        self._endpoint = endpoint
        self._base = endpoint.url.rstrip("/") + _API

    def search_models(self) -> list[RegisteredModel]:
        """Every registered model, with aliases."""
        return list(self._models({}))

    def search_versions(self, name: str | None = None) -> list[ModelVersion]:
        """Every version, of one model or of all, newest change first."""
        # Not paged in the order of change: a version that changes between two pages would be on neither.
        query = {"order_by": "name ASC", **_of_model(name)}
        found = [
            _version(item) for item in self.pages("model-versions/search", "model_versions", query, _VERSIONS_PAGE_SIZE)
        ]
        return sorted(found, key=lambda version: version.updated_at, reverse=True)

    def search_changed_versions(self, since: int, name: str | None = None) -> list[ModelVersion]:
        """Versions of one model or of all that changed at `since` (unix ms) or later, newest change first.

        Being made, described or moved to another stage counts as a change; a tag and an alias do not.
        """
        query = {"order_by": "last_updated_timestamp DESC", **_of_model(name)}
        items = self.pages("model-versions/search", "model_versions", query, _CHANGES_PAGE_SIZE)
        return list(takewhile(lambda item: item.updated_at >= since, map(_version, items)))

    def get_model(self, name: str) -> RegisteredModel:
        """One registered model."""
        # Not by `registered-models/get`: it reads every version ever made, to tell the latest of each stage.
        found = next(self._models(_of_model(name)), None)
        if found is None:
            raise RegistryNotFound(f"Registered Model with name={name} not found")
        return found

    def get_version(self, name: str, version: int) -> ModelVersion:
        """One version of a registered model."""
        answer = self.call("GET", "model-versions/get", {"name": name, "version": str(version)})
        return _version(answer["model_version"])

    def get_artifact_address(self, name: str, version: int) -> str:
        """Address of a version's artifacts, usually `s3://...`."""
        answer = self.call("GET", "model-versions/get-download-uri", {"name": name, "version": str(version)})
        return str(answer["artifact_uri"])

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version, moving it if it points elsewhere."""
        self.call("POST", "registered-models/alias", body={"name": name, "alias": alias, "version": str(version)})

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; it need not exist."""
        self.call("DELETE", "registered-models/alias", body={"name": name, "alias": alias})

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Set a tag of a registered model."""
        self.call("POST", "registered-models/set-tag", body={"name": name, "key": key, "value": value})

    def delete_model_tag(self, name: str, key: str) -> None:
        """Remove a tag of a registered model; nothing happens where it has none of that key."""
        self.call("DELETE", "registered-models/delete-tag", body={"name": name, "key": key})

    def set_version_tag(self, name: str, version: int, key: str, value: str) -> None:
        """Set a tag of a version."""
        body = {"name": name, "version": str(version), "key": key, "value": value}
        self.call("POST", "model-versions/set-tag", body=body)

    def delete_version_tag(self, name: str, version: int, key: str) -> None:
        """Remove a tag of a version."""
        self.call("DELETE", "model-versions/delete-tag", body={"name": name, "version": str(version), "key": key})

    def transition_stage(
        self, name: str, version: int, stage: Stage, *, archive_existing: bool = False
    ) -> ModelVersion:
        """Move a version to a stage; returns it as it is then."""
        body = {
            "name": name,
            "version": str(version),
            "stage": stage.value,
            "archive_existing_versions": archive_existing,
        }
        return _version(self.call("POST", "model-versions/transition-stage", body=body)["model_version"])

    def _models(self, query: Mapping[str, str]) -> Iterator[RegisteredModel]:
        return (_model(item) for item in self.pages("registered-models/search", "registered_models", query))

    def pages(self, path: str, key: str, query: Mapping[str, str], size: int = _PAGE_SIZE) -> Iterator[dict[str, Any]]:
        """The items of a list that comes in pages, `size` of them in each."""
        token = ""
        while True:
            page = {**query, "max_results": str(size)}
            if token:
                page["page_token"] = token
            answer = self.call("GET", path, page)
            yield from answer.get(key, [])
            token = answer.get("next_page_token", "")
            if not token:
                return

    def call(
        self, method: str, path: str, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """One call of the interface, by its path below `/api/2.0/mlflow/`; what it answers."""
        url = self._base + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._endpoint.headers}
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self._endpoint.timeout_s) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise _refusal(error, f"{method} {path}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise RegistryUnavailable(
                f"registry {self._endpoint.url} does not answer ({error}): is MLflow running, "
                "and is LORAFLEET_MLFLOW_URL right?"
            ) from error
        return dict(answer)


def _refusal(error: urllib.error.HTTPError, call: str) -> RegistryError:
    try:
        with error:
            text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        text = str(error)  # It died while it told why; the status is known.
    try:
        answer = json.loads(text)
        code, message = str(answer.get("error_code", error.code)), str(answer.get("message", text))
    except (ValueError, AttributeError):
        code, message = str(error.code), text[:200]
    if code == "RESOURCE_DOES_NOT_EXIST" or error.code == 404:
        return RegistryNotFound(message)
    if error.code in (502, 503, 504):
        return RegistryUnavailable(f"registry answered {error.code} to {call}: {message}")
    return RegistryError(f"registry refused {call} with {code}: {message}{_REMEDIES.get(error.code, '')}")


def _of_model(name: str | None) -> dict[str, str]:
    return {} if name is None else {"filter": f"name='{name}'"}


def _tags(item: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in item.get("tags", [])}


def _model(item: Mapping[str, Any]) -> RegisteredModel:
    aliases = {entry["alias"]: int(entry["version"]) for entry in item.get("aliases", [])}
    created_at = int(item.get("creation_timestamp", 0))
    return RegisteredModel(name=item["name"], aliases=aliases, tags=_tags(item), created_at=created_at)


def _version(item: Mapping[str, Any]) -> ModelVersion:
    return ModelVersion(
        name=item["name"],
        version=int(item["version"]),
        stage=Stage(item.get("current_stage") or Stage.NONE),
        tags=_tags(item),
        source=item.get("source", ""),
        run_id=item.get("run_id", ""),
        status=item.get("status", ""),
        created_at=int(item.get("creation_timestamp", 0)),
        updated_at=int(item.get("last_updated_timestamp", 0)),
    )

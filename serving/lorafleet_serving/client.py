"""A client of one pod, for the command line, the controller and DAGs. Imports no web framework and no torch."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

from lorafleet_contract.exceptions import InvalidManifest
from lorafleet_contract.fleet import PodReport
from lorafleet_contract.webhook import (
    DELIVERY_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    WEBHOOK_PATH,
    webhook_signature,
)
from lorafleet_serving.exceptions import ServingError


class PodError(ServingError):
    """Raised when a pod answers with an error; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class PodUnreachable(ServingError, ConnectionError):
    """Raised when a pod does not answer."""


@dataclass(frozen=True)
class Completion:
    """A whole answer, and which adapter gave it: `name:version`, empty for the base."""

    text: str
    adapter: str
    digest: str
    finish_reason: str
    num_prompt_tokens: int
    num_tokens: int

    @property
    def version(self) -> int | None:
        """Version of the adapter that answered; None for the base."""
        _, _, version = self.adapter.rpartition(":")
        return int(version) if version else None


@dataclass(frozen=True)
class CompletionPart:
    """A piece of a streamed answer."""

    text: str
    adapter: str
    digest: str
    finish_reason: str | None = None


class PodClient:
    """Calls to one pod. Raises `PodError` for its refusals and `PodUnreachable` when it does not answer."""

    def __init__(self, url: str, admin_token: str | None = None, *, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        headers = {} if admin_token is None else {"Authorization": f"Bearer {admin_token}"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_s, trust_env=False)

    def __enter__(self) -> PodClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def health(self) -> bool:
        """Whether the pod answers and its engine process runs."""
        return self._is_ok("/health")

    def ready(self) -> bool:
        """Whether the pod takes requests."""
        return self._is_ok("/ready")

    def status(self) -> dict[str, str]:
        """State of the pod's parts, ready or not."""
        return self._read(self._send("GET", "/ready"))

    def report(self) -> PodReport:
        """What the pod says about its adapters; needs the admin token."""
        try:
            return PodReport.from_json(self._read(self._call("GET", "/v1/adapters")))
        except InvalidManifest as error:
            raise PodError(f"pod {self.url}: {error}", 200) from error

    def models(self) -> list[dict[str, Any]]:
        """The base model and the adapters that can be asked for."""
        return list(self._read(self._call("GET", "/v1/models")).get("data", []))

    def complete(
        self,
        model: str = "",
        prompt: str | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        stop: list[str] | None = None,
        seed: int | None = None,
    ) -> Completion:
        """Continue a prompt, or fill the adapter's own template."""
        body = _body(model, prompt, variables, max_tokens, temperature, stop, seed)
        response = self._call("POST", "/v1/completions", json.dumps(body).encode())
        answer = self._read(response)
        choice, usage = answer["choices"][0], answer["usage"]
        return Completion(
            text=choice["text"],
            **_source(response),
            finish_reason=choice["finish_reason"],
            num_prompt_tokens=usage["prompt_tokens"],
            num_tokens=usage["completion_tokens"],
        )

    def stream(
        self,
        model: str = "",
        prompt: str | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        stop: list[str] | None = None,
        seed: int | None = None,
    ) -> Iterator[CompletionPart]:
        """The same, piece by piece."""
        body = {**_body(model, prompt, variables, max_tokens, temperature, stop, seed), "stream": True}
        try:
            with self._http.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    response.read()
                    raise self._refusal(response)
                source = _source(response)
                for item in _events(response):
                    if "error" in item:
                        raise PodError(item["error"]["message"], int(item["error"]["code"]))
                    choice = item["choices"][0]
                    yield CompletionPart(text=choice["text"], finish_reason=choice["finish_reason"], **source)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def nudge(self, name: str, secret: str) -> None:
        """Tell the pod that the registry changed for a name."""
        changed = {
            "entity": "registered_model",
            "action": "changed",
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "data": {"name": name},
        }
        body = json.dumps(changed).encode()
        delivery, timestamp = str(uuid.uuid4()), str(int(time.time()))
        headers = {
            DELIVERY_HEADER: delivery,
            TIMESTAMP_HEADER: timestamp,
            SIGNATURE_HEADER: webhook_signature(body, delivery, timestamp, secret),
        }
        self._call("POST", WEBHOOK_PATH, body, **headers)

    def _is_ok(self, path: str) -> bool:
        try:
            return self._send("GET", path).status_code == httpx.codes.OK
        except PodUnreachable:
            return False

    def _call(self, method: str, path: str, content: bytes | None = None, **headers: str) -> httpx.Response:
        response = self._send(method, path, content, **headers)
        if response.status_code != httpx.codes.OK:
            raise self._refusal(response)
        return response

    def _send(self, method: str, path: str, content: bytes | None = None, **headers: str) -> httpx.Response:
        if content is not None:
            headers = {"Content-Type": "application/json", **headers}
        try:
            return self._http.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            said = f"answered {response.status_code} with {response.text[:60]!r}"
            raise PodError(f"{self.url} {said}, which no pod does: is it the address of one?", response.status_code)
        return answer

    def _unreachable(self, error: Exception) -> PodUnreachable:
        return PodUnreachable(f"pod {self.url} does not answer ({error or type(error).__name__}): is it running?")

    def _refusal(self, response: httpx.Response) -> PodError:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:200]
        return PodError(f"pod {self.url} answered {response.status_code}: {message}", response.status_code)


def _body(
    model: str,
    prompt: str | None,
    variables: Mapping[str, Any] | None,
    max_tokens: int | None,
    temperature: float,
    stop: list[str] | None,
    seed: int | None,
) -> dict[str, Any]:
    fields = {
        "model": model,
        "prompt": prompt,
        "variables": None if variables is None else dict(variables),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stop": stop,
        "seed": seed,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _source(response: httpx.Response) -> dict[str, str]:
    headers = response.headers
    return {"adapter": headers.get("x-lorafleet-adapter", ""), "digest": headers.get("x-lorafleet-digest", "")}


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if line.startswith("data: ") and data != "[DONE]":
            yield json.loads(data)

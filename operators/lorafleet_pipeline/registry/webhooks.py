"""MLflow's own webhooks: one for each pod, by which an MLflow that does not run our app tells the pods what changed.

They are a nudge and no more: MLflow sends none for a stage, a deleted version, or a tag of a registered model, and
forgets those under way when it stops. Pods poll besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from lorafleet_contract.exceptions import RegistryError, RegistryNotFound, RegistryUnavailable
from lorafleet_contract.registry import RegistryClient
from lorafleet_contract.webhook import WEBHOOK_PATH
from lorafleet_pipeline.exceptions import InvalidSetting, WebhookRefused
from lorafleet_pipeline.settings import PlatformSettings

EVENTS = (
    ("MODEL_VERSION", "CREATED"),
    ("MODEL_VERSION_TAG", "SET"),
    ("MODEL_VERSION_TAG", "DELETED"),
    ("MODEL_VERSION_ALIAS", "CREATED"),
    ("MODEL_VERSION_ALIAS", "DELETED"),
)
_ACTIVE = "ACTIVE"
_TIMEOUT_S = 180.0
"""MLflow answers for a test once it has tried four times, each for half a minute if it must."""
_PREFIX = "lorafleet-"
"""Of the names that MLflow has for the webhooks of pods; it leaves those of others alone."""
_REMEDIES = (
    (
        "URL scheme",
        "start MLflow with MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https, or name the pods by https in LORAFLEET_PODS",
    ),
    ("non-public IP", "start MLflow with MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true, if it may reach its own network"),
    ("Cannot resolve", "name the pods in LORAFLEET_PODS as MLflow's machine knows them"),
    (
        "INTERNAL_ERROR",
        "start MLflow with MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY set to one key, the same for all workers and starts: "
        "without it each worker keeps secrets by a key of its own, which others cannot read",
    ),
    ("Permission denied", "MLflow lets administrators alone have webhooks"),
)


class WebhookState(StrEnum):
    """What is known of a pod's webhook, or was done about it."""

    MISSING = "missing"
    ACTIVE = "active"
    DIFFERS = "differs"
    """Switched off, or of other events."""
    STRAY = "stray"
    """Made by LoRAFleet, for no pod of these settings; or a second one for the same pod."""
    CREATED = "created"
    UPDATED = "updated"
    REMOVED = "removed"


@dataclass(frozen=True)
class PodWebhook:
    """One webhook of a pod: the one that MLflow has, or, where `webhook_id` is None, the one that it lacks."""

    pod: str
    state: WebhookState
    webhook_id: str | None = None
    is_answered: bool | None = None
    """Whether the pod took a delivery that MLflow made to test it; None where none was made."""
    answer: str | None = None
    """Status and body of the pod's answer to that, or why there is none."""


class Webhooks:
    """The webhooks of all pods of the settings in one MLflow.

    Every method raises `WebhookRefused` where MLflow does not have them or does not take one, with the remedy.
    """

    def __init__(self, settings: PlatformSettings) -> None:
        self._registry = RegistryClient(replace(settings.registry_endpoint(), timeout_s=_TIMEOUT_S))
        self._pods = tuple(dict.fromkeys(settings.pods))
        self._secret = settings.webhook_secret

    def found(self) -> list[PodWebhook]:
        """Those of the pods, in their order, and then the strays."""
        held: dict[str, PodWebhook] = {}
        strays = []
        for item in self._listed():
            webhook = _read(item)
            if webhook.pod in self._pods and webhook.pod not in held:
                held[webhook.pod] = webhook
            else:
                strays.append(replace(webhook, state=WebhookState.STRAY))
        missing = {pod: PodWebhook(pod, WebhookState.MISSING) for pod in self._pods}
        return [*(missing | held).values(), *strays]

    def set(self, *, prune: bool = False) -> list[PodWebhook]:
        """Have one for each pod, active, of the right events and with the secret of the settings.

        MLflow does not tell a secret, so that it is set anew each time. `prune` removes strays.

        Raises:
            InvalidSetting: there is no pod, or no secret.
        """
        if not self._pods:
            raise InvalidSetting("no pod is configured: set LORAFLEET_PODS to the pods' addresses, as MLflow sees them")
        if not self._secret:
            raise InvalidSetting("LORAFLEET_WEBHOOK_SECRET is not set: set it to the secret that the pods have")
        return [
            (self._removed(item) if prune else item) if item.state is WebhookState.STRAY else self._set(item)
            for item in self.found()
        ]

    def remove(self, *, prune: bool = False) -> list[PodWebhook]:
        """Have none for the pods; `prune` removes strays too."""
        kept = {WebhookState.MISSING} | (set() if prune else {WebhookState.STRAY})
        return [item if item.state in kept else self._removed(item) for item in self.found()]

    def tested(self) -> list[PodWebhook]:
        """Those of the pods, after MLflow has made a delivery to each that it has."""
        return [self._tested(item) for item in self.found() if item.state is not WebhookState.STRAY]

    def _listed(self) -> list[dict[str, Any]]:
        try:
            items = list(self._registry.pages("webhooks", "webhooks", {}, 100))
        except RegistryNotFound as error:
            raise WebhookRefused(
                "this MLflow has no webhooks: it needs version 3.3 or later, and its registry in a database"
            ) from error
        except RegistryError as error:
            raise _refused("webhooks could not be read", error) from error
        return [item for item in items if str(item.get("name", "")).startswith(_PREFIX)]

    def _set(self, item: PodWebhook) -> PodWebhook:
        body = {
            "name": _PREFIX + hashlib.sha256(item.pod.encode()).hexdigest()[:12],
            "description": f"Tells the LoRAFleet pod {item.pod} what changed",
            "url": item.pod + WEBHOOK_PATH,
            "events": [{"entity": entity, "action": action} for entity, action in EVENTS],
            "secret": self._secret,
            "status": _ACTIVE,
        }
        is_new = item.webhook_id is None
        answer = self._call(item, "POST", "webhooks", body) if is_new else self._call(item, "PATCH", _path(item), body)
        state = WebhookState.CREATED if is_new else WebhookState.UPDATED
        return replace(item, state=state, webhook_id=str(answer["webhook"]["webhook_id"]))

    def _removed(self, item: PodWebhook) -> PodWebhook:
        self._call(item, "DELETE", _path(item), {})
        return replace(item, state=WebhookState.REMOVED)

    def _tested(self, item: PodWebhook) -> PodWebhook:
        if item.webhook_id is None:
            return item
        result = self._call(item, "POST", f"{_path(item)}/test", {})["result"]
        said = (str(result[key]) for key in ("response_status", "response_body", "error_message") if result.get(key))
        return replace(item, is_answered=bool(result.get("success")), answer=": ".join(said)[:500])

    def _call(self, item: PodWebhook, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._registry.call(method, path, body=body)
        except RegistryError as error:
            raise _refused(f"the webhook of pod {item.pod} was not taken", error) from error


def _refused(what: str, error: RegistryError) -> RegistryError | WebhookRefused:
    if isinstance(error, RegistryUnavailable):
        return error
    remedies = [remedy for sign, remedy in _REMEDIES if sign in str(error)]
    return WebhookRefused("; ".join((f"{what}: {error}", *remedies[:1])))


def _path(item: PodWebhook) -> str:
    assert item.webhook_id is not None, f"MLflow has no webhook of {item.pod}"
    return f"webhooks/{item.webhook_id}"


def _read(item: Mapping[str, Any]) -> PodWebhook:
    events = {(event["entity"], event["action"]) for event in item.get("events", ())}
    is_right = item.get("status") == _ACTIVE and events == set(EVENTS)
    state = WebhookState.ACTIVE if is_right else WebhookState.DIFFERS
    return PodWebhook(str(item["url"]).removesuffix(WEBHOOK_PATH), state, str(item["webhook_id"]))

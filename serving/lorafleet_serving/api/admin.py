"""Routes for the platform itself: the adapters report behind the admin token, and signed nudges."""

from __future__ import annotations

import hmac
import json
import time
from collections import OrderedDict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from lorafleet_contract.tags import OWN_PREFIXES
from lorafleet_contract.webhook import (
    DELIVERY_HEADER,
    SIGNATURE_HEADER,
    TIMESTAMP_HEADER,
    WEBHOOK_PATH,
    webhook_signature,
)
from lorafleet_serving.adapters.administration import AdminAction
from lorafleet_serving.adapters.catalog import CatalogVersion
from lorafleet_serving.api.asker import Asker
from lorafleet_serving.api.audit import audited, check_admin
from lorafleet_serving.api.schemas import RequestBody
from lorafleet_serving.exceptions import Forbidden, InvalidRequest, Unauthorized
from lorafleet_serving.report import report, report_version

_MAX_CHARACTERS = 200
"""Of what names an adapter; the audit log repeats it."""
_WINDOW_S = 300
_MAX_REMEMBERED = 10_000
_ENTITIES = ("registered_model", "model_version", "model_version_tag", "model_version_alias")
"""Of MLflow's webhooks, those that a pod follows."""


class AdapterChoice(RequestBody):
    """Body of what is done to one version."""

    adapter: str = Field(max_length=_MAX_CHARACTERS, description="`name`, `name@alias` or `name:version`")


class AdminRoutes:
    """Routes that change or reveal the pod's state."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._pod = asker.pod
        self._deliveries = Deliveries()
        self.router = APIRouter(tags=["admin"])
        self.router.add_api_route("/v1/adapters", self.adapters, methods=["GET"])
        self.router.add_api_route("/v1/adapters/{action}", self.act, methods=["POST"])
        self.router.add_api_route(WEBHOOK_PATH, self.webhook, methods=["POST"])

    async def adapters(self, request: Request) -> dict[str, Any]:
        """Every adapter with its versions, states and tiers."""
        check_admin(self._asker, request)
        return report(self._pod).to_json()

    async def act(self, action: AdminAction, body: AdapterChoice, request: Request) -> dict[str, Any]:
        """Pin, unpin, evict or reload a version that is ready; answers with where it is then."""
        check_admin(self._asker, request)
        with audited(action, body.adapter):
            version = await self._act(action, body.adapter, request)
        return report_version(self._pod, version)

    async def _act(self, action: AdminAction, name: str, request: Request) -> CatalogVersion:
        version = self._pod.resolve(name, self._asker.caller(request), joins_canary=False)
        if version is None or self._pod.following is None:
            raise InvalidRequest("adapter names the base model, which always is in memory", field="adapter")
        await self._pod.following.administration.act(action, version)
        return version

    async def webhook(self, request: Request) -> dict[str, str]:
        """A signed word that the registry changed; carries no state, only where to look."""
        secret = self._pod.config.webhook_secret
        if secret is None:
            raise Forbidden("registry nudges are off: set LORAFLEET_WEBHOOK_SECRET")
        body = await request.body()
        headers = request.headers
        delivery, timestamp = headers.get(DELIVERY_HEADER, ""), headers.get(TIMESTAMP_HEADER, "")
        check_signature(body, delivery, timestamp, headers.get(SIGNATURE_HEADER, ""), secret)
        name = _changed_name(body)
        if not self._deliveries.is_new(delivery):
            return {"status": "seen before"}
        if name is None:
            return {"status": "ignored"}
        self._pod.nudge(name)
        return {"status": "accepted"}


class Deliveries:
    """Ids of the deliveries taken within the time in which their signature is valid."""

    def __init__(self) -> None:
        self._taken: OrderedDict[str, float] = OrderedDict()

    def is_new(self, delivery: str) -> bool:
        """Whether a delivery has not been taken before; from now on it has."""
        now = time.monotonic()
        # A signature is good from one window before to one window after its time.
        while self._taken and (
            next(iter(self._taken.values())) < now - 2 * _WINDOW_S or len(self._taken) > _MAX_REMEMBERED
        ):
            self._taken.popitem(last=False)
        if delivery in self._taken:
            return False
        self._taken[delivery] = now
        return True


def check_signature(body: bytes, delivery: str, timestamp: str, signature: str, secret: str) -> None:
    """Check a delivery.

    Raises:
        Unauthorized: the signature is missing or wrong, or the delivery is too old or from the future.
    """
    expected = webhook_signature(body, delivery, timestamp, secret)
    if not delivery or not hmac.compare_digest(signature.encode(), expected.encode()):
        raise Unauthorized("the webhook's signature is missing or wrong: LORAFLEET_WEBHOOK_SECRET must be the same")
    age = abs(time.time() - float(timestamp)) if timestamp.isdecimal() else float("inf")
    if age > _WINDOW_S:
        raise Unauthorized(f"the webhook's time is {timestamp!r}, more than {_WINDOW_S} s away: check the clocks")


def _changed_name(body: bytes) -> str | None:
    """The model that a delivery is about; None where a pod need not look, as at what is no model."""
    try:
        told = json.loads(body)
        # MLflow may be told to send everything that it has, and tests a webhook by whatever comes first.
        if told.get("entity", _ENTITIES[0]) not in _ENTITIES:
            return None
        name, key = told["data"]["name"], told["data"].get("key")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest("the body has no data.name: send MLflow's webhook format", field="data.name") from error
    if not isinstance(name, str):
        raise InvalidRequest(f"data.name is {name!r}, it must be a string", field="data.name")
    # The controller writes some at each promotion, and every pod would look at the adapter for each.
    return None if str(key).startswith(OWN_PREFIXES) else name

"""The models of the OpenAI dialect: the base, and every adapter that can be asked for by its bare name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from lorafleet_serving.api.asker import Asker
from lorafleet_serving.exceptions import UnknownAdapter

Json = dict[str, Any]


class ModelRoutes:
    """Routes that list what can be asked."""

    def __init__(self, asker: Asker) -> None:
        self._pod = asker.pod
        self._callers = asker.callers
        self.router = APIRouter(tags=["OpenAI"])
        self.router.add_api_route("/v1/models", self.models, methods=["GET"])
        self.router.add_api_route("/v1/models/{model_id:path}", self.model, methods=["GET"])

    async def models(self, request: Request) -> Json:
        """The base model, and every adapter that can be asked for by its bare name, with the key that is shown."""
        return {"object": "list", "data": self._entries(request)}

    async def model(self, request: Request, model_id: str) -> Json:
        """One of them."""
        found = next((entry for entry in self._entries(request) if entry["id"] == model_id), None)
        if found is None:
            raise UnknownAdapter(f"there is no model {model_id[:100]!r}: see /v1/models")
        return found

    def _entries(self, request: Request) -> list[Json]:
        config = self._pod.config
        base = _entry(config.base_id, root=str(config.engine.model), parent=None)
        base |= {"digest": self._pod.base_digest, "state": "ready" if self._pod.engine.is_ready else "loading"}
        base |= {"max_model_len": self._pod.engine.facts.max_model_len if self._pod.engine.facts else None}
        entries = [base]
        for name, adapter in sorted(self._pod.catalog.adapters.items()):
            version = adapter.versions.get(adapter.serving or 0)
            if version is not None and version.state is not None:
                entry = _entry(name, root=version.address or version.registered.source, parent=config.base_id)
                facts = {"version": adapter.serving, "digest": version.digest, "state": version.state.value}
                entries.append(entry | facts)
        for name, version in sorted(self._pod.catalog.by_hand.items()):
            # What is at an address is the administrator's to know.
            entry = _entry(name, root=name, parent=config.base_id)
            entries.append(entry | {"digest": version.digest, "state": "ready", "loaded_by_hand": True})
        caller = self._callers.onlooker(request.headers)
        return [entry for entry in entries if caller.may_ask(entry["id"])]


def _entry(model_id: str, *, root: str, parent: str | None) -> Json:
    return {"id": model_id, "object": "model", "created": 0, "owned_by": "lorafleet", "root": root, "parent": parent}

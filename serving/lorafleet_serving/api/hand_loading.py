"""vLLM's routes for loading adapters by hand, behind the admin token."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse
from pydantic import Field

from lorafleet_serving.adapters.hand_loading import HandLoading
from lorafleet_serving.api.asker import Asker
from lorafleet_serving.api.audit import audited, check_admin
from lorafleet_serving.api.schemas import RequestBody
from lorafleet_serving.exceptions import CannotLoad, Forbidden, PodUnavailable

_MAX_CHARACTERS = 200
_MAX_ADDRESS_CHARACTERS = 1024
"""Of what the audit log repeats."""


class LoadRequest(RequestBody):
    """Body of a load, as vLLM's."""

    lora_name: str = Field("", max_length=_MAX_CHARACTERS, description="name under which it is asked")
    lora_path: str = Field("", max_length=_MAX_ADDRESS_CHARACTERS, description="address of the adapter's files")
    load_inplace: bool = Field(False, description="whether it takes the place of another that was loaded by hand")
    base_model_name: str = Field(
        "", max_length=_MAX_CHARACTERS, description="the base model's id, where the adapter's config calls it otherwise"
    )


class UnloadRequest(RequestBody):
    """Body of an unload, as vLLM's."""

    lora_name: str = Field("", max_length=_MAX_CHARACTERS, description="name under which it was loaded")


class HandLoadingRoutes:
    """Routes that load and unload what the registry knows nothing of."""

    def __init__(self, asker: Asker) -> None:
        self._asker = asker
        self._pod = asker.pod
        self.router = APIRouter(tags=["admin"])
        self.router.add_api_route("/v1/load_lora_adapter", self.load, methods=["POST"])
        self.router.add_api_route("/v1/unload_lora_adapter", self.unload, methods=["POST"])

    async def load(self, body: LoadRequest, request: Request) -> PlainTextResponse:
        """Load an adapter that is in no registry, once it is verified; it answers from then on."""
        check_admin(self._asker, request)
        with audited("load", body.lora_name, address=body.lora_path):
            if not body.lora_name or not body.lora_path:
                raise CannotLoad("Both 'lora_name' and 'lora_path' must be provided.", field="lora_name")
            base_id = self._pod.config.base_id
            if body.base_model_name not in ("", base_id):
                raise CannotLoad(
                    f"base_model_name is {body.base_model_name!r}, this pod serves {base_id!r}", field="base_model_name"
                )
            await self._hand_loading().load(
                body.lora_name, body.lora_path, in_place=body.load_inplace, any_base=bool(body.base_model_name)
            )
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(self, body: UnloadRequest, request: Request) -> PlainTextResponse:
        """Let go of an adapter that was loaded by hand; answers that run come to their end."""
        check_admin(self._asker, request)
        with audited("unload", body.lora_name):
            if not body.lora_name:
                raise CannotLoad("'lora_name' needs to be provided to unload a LoRA adapter.", field="lora_name")
            self._hand_loading().unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _hand_loading(self) -> HandLoading:
        if self._pod.config.registry is None:
            raise Forbidden("a pod without a registry serves its base alone: set LORAFLEET_MLFLOW_URL")
        following = self._pod.following
        if following is None or following.synced_at is None:
            raise PodUnavailable("the registry was not read yet, so nobody knows which names are its: try again later")
        return following.by_hand

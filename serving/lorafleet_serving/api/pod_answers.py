"""Answers about the pod itself, for the OpenAPI document: fields without a default are always there."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from lorafleet_serving.api.openai_answers import AnswerBody


class Health(AnswerBody):
    """Answer of `/health`."""

    status: Literal["ok"]


class EngineDown(AnswerBody):
    """Answer of `/health` while no engine process runs."""

    error: str
    error_type: Literal["healthcheck"]


class Readiness(AnswerBody):
    """Answer of `/ready`, whether it is or not."""

    status: Literal["ready", "not ready", "draining"]
    engine: str
    fetcher: str
    registry: str
    adapters: str
    keys: str


class Liveness(AnswerBody):
    """Answer of `/v2/health/live`."""

    live: bool


class Version(AnswerBody):
    """Answer of `/version`."""

    version: str
    contract: str


class DeliveryTaken(AnswerBody):
    """Answer of `/v1/registry/webhook`."""

    status: Literal["accepted", "seen before"]


class ChangedModel(BaseModel):
    """What a delivery of MLflow's says of the model; its other fields are not read."""

    name: str


class Delivery(BaseModel):
    """A delivery of MLflow's webhooks; its other fields are not read."""

    data: ChangedModel

"""The application: all routes over one pod."""

from __future__ import annotations

from fastapi import FastAPI

from lorafleet_serving.api.admin import AdminRoutes
from lorafleet_serving.api.asker import Asker
from lorafleet_serving.api.body_limit import BodyLimit
from lorafleet_serving.api.callers import KeyGuard
from lorafleet_serving.api.embeddings import EmbeddingRoutes
from lorafleet_serving.api.errors import install_handlers
from lorafleet_serving.api.hand_loading import HandLoadingRoutes
from lorafleet_serving.api.health import HealthRoutes
from lorafleet_serving.api.lorax import LoraxRoutes
from lorafleet_serving.api.metrics import PodMetrics
from lorafleet_serving.api.openai import OpenAIRoutes
from lorafleet_serving.api.openai_models import ModelRoutes
from lorafleet_serving.api.openapi import install_document
from lorafleet_serving.pod import Pod
from lorafleet_serving.version import VERSION


def create_app(pod: Pod) -> FastAPI:
    """The HTTP surface of a pod. Starting and stopping the pod is the caller's business."""
    app = FastAPI(title="LoRAFleet pod", version=VERSION)
    metrics = PodMetrics(pod)
    asker = Asker(pod, metrics)
    install_handlers(app, metrics.refused)
    app.add_middleware(BodyLimit, max_bytes=pod.config.max_body_bytes, on_refusal=metrics.refused)
    app.add_middleware(KeyGuard, callers=asker.callers, on_refusal=metrics.refused)
    app.include_router(OpenAIRoutes(asker).router)
    app.include_router(ModelRoutes(asker).router)
    app.include_router(EmbeddingRoutes(asker).router)
    app.include_router(LoraxRoutes(asker).router)
    app.include_router(AdminRoutes(asker).router)
    app.include_router(HandLoadingRoutes(asker).router)
    app.include_router(HealthRoutes(pod, metrics).router)
    install_document(app)
    return app

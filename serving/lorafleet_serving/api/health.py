"""Probes, versions and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from lorafleet_contract import CONTRACT_VERSION
from lorafleet_serving.api.metrics import PodMetrics
from lorafleet_serving.pod import Pod
from lorafleet_serving.report import parts
from lorafleet_serving.version import VERSION


class HealthRoutes:
    """Routes that orchestrators and monitors ask."""

    def __init__(self, pod: Pod, metrics: PodMetrics) -> None:
        self._pod = pod
        self._metrics = metrics
        self.router = APIRouter(tags=["health"])
        for path in ("/", "/health", "/ping"):
            self.router.add_api_route(path, self.health, methods=["GET"], response_model=None)
        for path in ("/ready", "/startup", "/v2/health/ready"):
            self.router.add_api_route(path, self.ready, methods=["GET"], response_model=None)
        self.router.add_api_route("/v2/health/live", self.live, methods=["GET"])
        self.router.add_api_route("/version", self.version, methods=["GET"])
        self.router.add_api_route("/metrics", self.metrics, methods=["GET"], response_model=None)

    async def health(self) -> Response:
        """200 while the engine process runs, be it only loading."""
        if self._pod.engine.is_alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"error": "the engine is down", "error_type": "healthcheck"}, 503)

    async def ready(self) -> Response:
        """200 when callers should be sent here."""
        ready = self._pod.is_ready
        word = "ready" if ready else "draining" if self._pod.is_draining else "not ready"
        return JSONResponse({"status": word, **parts(self._pod)}, 200 if ready else 503)

    async def live(self) -> dict[str, bool]:
        """200 while the front answers."""
        return {"live": True}

    async def version(self) -> dict[str, str]:
        """Version of the software and of its contract with the pipeline."""
        return {"version": VERSION, "contract": CONTRACT_VERSION}

    async def metrics(self) -> Response:
        """Prometheus text."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE_LATEST)

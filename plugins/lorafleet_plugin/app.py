"""The application behind the Fleet view: one page, its parts, and the adapters as JSON.

Airflow mounts it beside its own application, whose login does not reach it. Authentication is therefore a
dependency of the whole application: a route that is added is closed until someone logs in, and FastAPI's own
documentation routes, which take no dependency, are switched off.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from fastapi import Depends, FastAPI, HTTPException, status
from fastapi.responses import FileResponse

from lorafleet_contract.exceptions import ContractError
from lorafleet_pipeline.exceptions import PipelineError

_logger = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def create_app() -> FastAPI:
    """The application; every route needs a user who may see plugins."""
    app = FastAPI(
        title="LoRAFleet",
        dependencies=[Depends(requires_access_view(AccessView.PLUGINS))],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.add_api_route("/", _page, methods=["GET"], response_class=FileResponse)
    app.add_api_route("/fleet.js", _script, methods=["GET"], response_class=FileResponse)
    app.add_api_route("/fleet.css", _style, methods=["GET"], response_class=FileResponse)
    app.add_api_route("/adapters", read_adapters, methods=["GET"])
    return app


def read_adapters() -> dict[str, Any]:
    """Every adapter: what the registry wants and what the pods serve."""
    from lorafleet_airflow.connections import platform_settings
    from lorafleet_airflow.exceptions import ProviderError
    from lorafleet_pipeline.registry.overview import fleet_overview

    try:
        overview = fleet_overview(platform_settings())
    except (ContractError, PipelineError, ProviderError) as error:
        # The message may name inner addresses: it belongs into the log, not into a browser.
        _logger.exception("the fleet could not be read")
        raise HTTPException(
            status.HTTP_502_BAD_GATEWAY, "The registry cannot be read: see the api-server's log"
        ) from error
    return {
        "adapters": [{**asdict(item), "trials": item.trials()} for item in overview.adapters],
        "silent_pods": sorted(overview.silent_pods),
    }


def _page() -> FileResponse:
    return FileResponse(_STATIC / "fleet.html", headers=_HEADERS)


def _script() -> FileResponse:
    return FileResponse(_STATIC / "fleet.js", media_type="text/javascript", headers=_HEADERS)


def _style() -> FileResponse:
    return FileResponse(_STATIC / "fleet.css", media_type="text/css", headers=_HEADERS)

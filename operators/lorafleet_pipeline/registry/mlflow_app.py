"""The MLflow server with the controller inside: `mlflow server --app-name lorafleet --workers 1`.

MLflow fires no webhook on a stage change, so each registry write that succeeded is announced to the
controller from here. With several workers only one runs the controller; it hears of the others' changes
by looking, a few seconds later.

Where a variable `MLFLOW_AUTH_...` is set, MLflow's sign-in stands before all of it: see `sign_in`. Else whoever reaches
the port may use it, but not for the folders of its machine: see `artifact_locations`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from flask import Response, g, request

from lorafleet_pipeline.registry.actor import AGENT_HEADER, CONTROLLER_AGENT
from lorafleet_pipeline.registry.announcements import RegistryCall, announcement_of, is_ordered
from lorafleet_pipeline.registry.artifact_locations import refuse_local_locations
from lorafleet_pipeline.registry.controller import Controller
from lorafleet_pipeline.registry.sign_in import is_wanted, signed_in_user, with_sign_in
from lorafleet_pipeline.settings import PlatformSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Flask

_logger = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_ASSISTANT = "/mlflow/assistant"


def create_app() -> Any:
    """Make the server's app and start the controller. MLflow calls this once in each worker.

    Raises:
        InvalidSetting: a setting is missing, or one that sign-in needs.
    """
    from mlflow.environment_variables import _MLFLOW_SGI_NAME
    from mlflow.server import app
    from mlflow.server.fastapi_app import create_fastapi_app

    _log_to_stderr()
    settings = PlatformSettings.load()
    refuse_local_locations()
    signs_in = is_wanted(os.environ)
    if signs_in:
        # Before anything of ours: a call that MLflow refuses is then none to announce.
        served = with_sign_in(app, settings)
    else:
        served = create_fastapi_app(app) if _MLFLOW_SGI_NAME.get() == "uvicorn" else app
    controller = Controller(settings, interval_s=_INTERVAL_S, announced=True)
    announce_writes(app, controller, settings.mlflow_username if signs_in else None)
    threading.Thread(target=_run, args=(controller,), name="lorafleet-controller", daemon=True).start()
    return served if served is app else without_assistant(served)


def without_assistant(app: FastAPI) -> FastAPI:
    """Take MLflow's assistant off: it writes files and runs commands for every caller on the machine, unasked."""
    app.router.routes = [route for route in app.router.routes if _ASSISTANT not in getattr(route, "path", "")]
    return app


def announce_writes(app: Flask, controller: Controller, controller_user: str | None = None) -> None:
    """Announce each registry write of a Flask app, in the order in which they were made.

    Where users sign in, `controller_user` is the one whose calls may be the controller's own.
    """
    turn = threading.Lock()

    def take_turn() -> None:
        # The database takes one write at a time anyway; this makes its order ours.
        if is_ordered(request.method, request.path):
            # The whole body first: a caller that stops halfway must not keep the others waiting.
            request.get_data()
            turn.acquire()
            g.lorafleet_turn = turn

    def announce(response: Response) -> Response:
        try:
            found = (
                announcement_of(_call(controller_user))
                if response.status_code == 200 and request.method != "GET"
                else None
            )
            if found is not None:
                controller.announce(found.name, found.change)
        except Exception:  # The write is done; a fault of ours must not turn its answer into an error.
            _logger.exception("a registry write could not be announced")
        return response

    def give_turn(_: BaseException | None) -> None:
        held: threading.Lock | None = g.pop("lorafleet_turn", None)
        if held is not None:
            held.release()

    app.before_request(take_turn)
    app.after_request(announce)
    app.teardown_request(give_turn)


def _log_to_stderr() -> None:
    # The server sets up loggers for itself alone, and what the controller does belongs in the same log.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y/%m/%d %H:%M:%S"))
    logger = logging.getLogger("lorafleet_pipeline")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _call(controller_user: str | None) -> RegistryCall:
    body = request.get_json(silent=True, force=True)
    named = request.authorization.username if request.authorization else None
    user = signed_in_user() or named
    headers = {name.lower(): value for name, value in request.headers.items()}
    is_own = headers.get(AGENT_HEADER.lower()) == CONTROLLER_AGENT
    if is_own and controller_user is not None and user != controller_user:
        # No change of anybody else goes unannounced, whatever agent it names.
        headers.pop(AGENT_HEADER.lower(), None)
    fields = body if isinstance(body, dict) else request.args.to_dict()
    return RegistryCall(request.method, request.path, fields, headers, user, time.time())


def _run(controller: Controller) -> None:
    try:
        controller.run(threading.Event())
    except Exception:  # MLflow goes on without it, and its log has to say so.
        _logger.exception("the controller ended; restart the MLflow server")

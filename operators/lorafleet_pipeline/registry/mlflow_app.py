"""The MLflow server with the controller inside: `mlflow server --app-name lorafleet --workers 1`.

MLflow fires no webhook on a stage change, so each registry write that succeeded is announced to the
controller from here. With several workers only one runs the controller; it hears of the others' changes
by looking, a few seconds later.

Nor does the app have a sign-in: whoever reaches the port may use it, but not for the folders of its machine. See
`artifact_locations`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from flask import Response, g, request

from lorafleet_pipeline.exceptions import InvalidSetting
from lorafleet_pipeline.registry.announcements import RegistryCall, announcement_of, is_ordered
from lorafleet_pipeline.registry.artifact_locations import refuse_local_locations
from lorafleet_pipeline.registry.controller import Controller
from lorafleet_pipeline.settings import PlatformSettings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from flask import Flask

_logger = logging.getLogger(__name__)

_INTERVAL_S = 5.0
_ASSISTANT = "/mlflow/assistant"
_AUTH_VARIABLE = "MLFLOW_AUTH_CONFIG_PATH"


def create_app() -> Any:
    """Make the server's app and start the controller. MLflow calls this once in each worker.

    Raises:
        InvalidSetting: a setting is missing, or sign-in is configured, which this app does not offer.
    """
    if os.environ.get(_AUTH_VARIABLE):
        # Going on would leave a server open that its owner believes closed.
        raise InvalidSetting(
            f"{_AUTH_VARIABLE} is set, and the app `lorafleet` has no sign-in: run `mlflow server --app-name "
            "basic-auth` with `lorafleet controller` beside it"
        )
    from mlflow.environment_variables import _MLFLOW_SGI_NAME
    from mlflow.server import app
    from mlflow.server.fastapi_app import create_fastapi_app

    _log_to_stderr()
    refuse_local_locations()
    controller = Controller(PlatformSettings.load(), interval_s=_INTERVAL_S, announced=True)
    announce_writes(app, controller)
    threading.Thread(target=_run, args=(controller,), name="lorafleet-controller", daemon=True).start()
    return without_assistant(create_fastapi_app(app)) if _MLFLOW_SGI_NAME.get() == "uvicorn" else app


def without_assistant(app: FastAPI) -> FastAPI:
    """Take MLflow's assistant off: it writes files and runs commands for every caller on the machine, unasked."""
    app.router.routes = [route for route in app.router.routes if _ASSISTANT not in getattr(route, "path", "")]
    return app


def announce_writes(app: Flask, controller: Controller) -> None:
    """Announce each registry write of a Flask app, in the order in which they were made."""
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
            found = announcement_of(_call()) if response.status_code == 200 and request.method != "GET" else None
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


def _call() -> RegistryCall:
    body = request.get_json(silent=True, force=True)
    user = request.authorization.username if request.authorization else None
    headers = {name.lower(): value for name, value in request.headers.items()}
    fields = body if isinstance(body, dict) else request.args.to_dict()
    return RegistryCall(request.method, request.path, fields, headers, user, time.time())


def _run(controller: Controller) -> None:
    try:
        controller.run(threading.Event())
    except Exception:  # MLflow goes on without it, and its log has to say so.
        _logger.exception("the controller ended; restart the MLflow server")

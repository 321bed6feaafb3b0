"""MLflow's sign-in before the app `lorafleet`: users, passwords and permissions are MLflow's own.

MLflow runs one app, so that ours has to put its `basic-auth` in front of itself. It is on where one of MLflow's own
variables for it is set: a server that its owner believes closed must not be open.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import g

from lorafleet_pipeline.exceptions import InvalidSetting
from lorafleet_pipeline.settings import PlatformSettings

if TYPE_CHECKING:
    from flask import Flask

_logger = logging.getLogger(__name__)

_VARIABLES = ("MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_AUTH_ADMIN_USERNAME", "MLFLOW_AUTH_ADMIN_PASSWORD")


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether one of MLflow's variables for sign-in is set, be it to nothing."""
    return any(name in environ for name in _VARIABLES)


def with_sign_in(app: Flask, settings: PlatformSettings) -> Any:
    """Have a Flask app of MLflow ask who calls, and refuse what that user may not do; the app to serve.

    The first start makes the administrator of MLflow's configuration.

    Raises:
        InvalidSetting: the controller has no credentials, or what MLflow needs for sign-in is missing.
    """
    if not (settings.mlflow_token or (settings.mlflow_username and settings.mlflow_password)):
        raise InvalidSetting(
            f"sign-in is on, by {' or '.join(_VARIABLES)}, and the controller has no credentials: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to those of a user who "
            "may edit every registered model"
        )
    from mlflow.exceptions import MlflowException

    try:
        # It reads its configuration when it is imported.
        from mlflow.server import auth

        served = auth.create_app(app)
    except ImportError as error:
        raise InvalidSetting(
            f"sign-in is on, and what it needs is missing: install lorafleet[auth] ({error})"
        ) from error
    except KeyError as error:
        raise InvalidSetting(
            f"sign-in is on, and its configuration has no {error}: see MLFLOW_AUTH_CONFIG_PATH, it must name a file "
            "with the section [mlflow] as MLflow's own basic_auth.ini has it"
        ) from error
    except MlflowException as error:
        raise InvalidSetting(f"sign-in is on, and MLflow cannot offer it: {error.message}") from error
    if not auth.auth_config.auth_cache_ttl_seconds:
        _logger.warning(
            "every call of pods and controller costs MLflow a hash that is slow on purpose: set "
            "auth_cache_ttl_seconds, to 60 for one, in the file that MLFLOW_AUTH_CONFIG_PATH names"
        )
    return served


def signed_in_user() -> str | None:
    """Name of the user whom MLflow has let in with the request under way; None where nobody signs in."""
    user = g.get("mlflow_authenticated_user")
    return None if user is None else str(user)

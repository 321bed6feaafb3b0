"""Who may administrate, and the log of what an administrator did or tried."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import Request

from lorafleet_serving.api.asker import Asker
from lorafleet_serving.exceptions import Forbidden, ServingError, Unauthorized

_audit = logging.getLogger("lorafleet_serving.audit")
"""One JSON object for each thing that an administrator did or tried."""


def check_admin(asker: Asker, request: Request) -> None:
    """Let nobody pass but the administrator.

    Raises:
        Forbidden: there is no admin token.
        Unauthorized: the request does not carry it.
    """
    if asker.pod.config.admin_token is None:
        raise Forbidden("admin routes are off: set LORAFLEET_ADMIN_TOKEN")
    if not asker.is_admin(request):
        raise Unauthorized("send the admin token: Authorization: Bearer <LORAFLEET_ADMIN_TOKEN>")


@contextmanager
def audited(action: str, adapter: str, **facts: str) -> Iterator[None]:
    """Log what is done within, and what came of it."""
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except ServingError as error:
        outcome = str(error)
        raise
    finally:
        told = {"action": action, "adapter": adapter, **facts, "by": "admin", "outcome": outcome}
        _audit.info(json.dumps(told, ensure_ascii=True))

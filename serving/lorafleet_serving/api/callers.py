"""From the headers of a request to who asks, and the guard before all routes that work for callers."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import replace
from glob import escape

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lorafleet_serving.api.errors import error_response
from lorafleet_serving.api.rate_headers import sends_rates
from lorafleet_serving.api_keys import ADMIN, ApiKey, Scope as KeyScope
from lorafleet_serving.caller import Caller
from lorafleet_serving.engine.request import ANONYMOUS, PRIORITIES
from lorafleet_serving.exceptions import Forbidden, InvalidRequest, Unauthorized
from lorafleet_serving.key_file import KeyFile
from lorafleet_serving.quota import Quota

TIMEOUT_HEADER = "x-request-timeout-s"
PRIORITY_HEADER = "x-request-priority"
USER_HEADER = "x-lorafleet-user"
MAX_USER_CHARACTERS = 512
_LONGEST_TIMEOUT_S = 86400.0
_SIGNED_PATH = "/v1/registry/webhook"
"""Has no use for a key: its deliveries are signed."""


class Callers:
    """Knows the keys, if callers are told apart, and the admin token. Without a key only the base model is seen."""

    def __init__(self, key_file: KeyFile | None, admin_token: str | None, base_id: str) -> None:
        self._key_file = key_file
        self._base_id = base_id
        self._admin_token = admin_token

    def is_admin(self, headers: Headers) -> bool:
        """Whether a request carries the admin token."""
        return self._admin_token is not None and hmac.compare_digest(
            _shown(headers).encode(), self._admin_token.encode()
        )

    def identify(self, headers: Headers) -> Caller:
        """Who sends a request.

        Raises:
            Unauthorized: it carries no key that is known, and must.
            Forbidden: its priority is above the key's.
            InvalidRequest: a header is no number, or out of range.
        """
        is_admin = self.is_admin(headers)
        key = None if is_admin else self._find(headers)
        priority = _priority(headers)
        if key is not None and priority > key.max_priority:
            raise Forbidden(f"{PRIORITY_HEADER} is {priority}, the key's highest is {key.max_priority}")
        tenant = key.tenant if key is not None else ANONYMOUS if self._key_file is None else ADMIN
        caller = Caller(
            tenant=tenant,
            names_versions=is_admin or (key is not None and KeyScope.VERSIONS in key.scopes),
            priority=priority,
            deadline=_deadline(headers),
        )
        if key is not None and self._key_file is not None:
            caller = replace(caller, goes_by=key.name, models=key.models, quota=self._key_file.quota(key))
        return caller.on_behalf_of(_user(headers))

    def onlooker(self, headers: Headers) -> Caller:
        """Who only looks, and sees what may be asked for: where there are keys, no more than the base without one."""
        if self._key_file is None or self.is_admin(headers):
            return Caller()
        key = self._key_file.keys.find(_shown(headers))
        return Caller(models=(escape(self._base_id),) if key is None else key.models)

    def quota(self, headers: Headers) -> Quota | None:
        """What may be had by the key that a request carries; None is without limits.

        Raises:
            Unauthorized: it carries none that is known, and must.
        """
        key = None if self.is_admin(headers) else self._find(headers)
        return None if key is None or self._key_file is None else self._key_file.quota(key)

    def _find(self, headers: Headers) -> ApiKey | None:
        if self._key_file is None:
            return None
        key = self._key_file.keys.find(_shown(headers))
        if key is None:
            raise Unauthorized("send a key of this pod: Authorization: Bearer <key>")
        return key


class KeyGuard:
    """Turns away every POST without a key before its body is read, and tells each key what it may still have.

    What is only looked at stays open. `on_refusal` is told of those who are turned away.
    """

    def __init__(self, app: ASGIApp, callers: Callers, on_refusal: Callable[[str], None]) -> None:
        self._app = app
        self._callers = callers
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] != _SIGNED_PATH:
            try:
                quota = self._callers.quota(Headers(scope=scope))
            except Unauthorized as error:
                response = error_response(scope["path"], error)
                self._on_refusal(response.reason)
                await response(scope, receive, send)
                return
            send = send if quota is None else sends_rates(quota, send)
        await self._app(scope, receive, send)


def _shown(headers: Headers) -> str:
    scheme, _, shown = headers.get("authorization", "").partition(" ")
    return shown.strip() if scheme.lower() == "bearer" else ""


def _user(headers: Headers) -> str | None:
    user = headers.get(USER_HEADER)
    if user is not None and len(user) > MAX_USER_CHARACTERS:
        limit = f"it has {len(user)} characters, at most {MAX_USER_CHARACTERS} are read: send a digest of it"
        raise InvalidRequest(f"{USER_HEADER} is {user[:20]!r}..., {limit}", field=USER_HEADER)
    return user


def _priority(headers: Headers) -> int:
    text = headers.get(PRIORITY_HEADER, "0")
    digits = text.removeprefix("-")
    # Longer ones are not even read: they are out of range, and int() takes long for very long ones.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3 and int(text) in PRIORITIES):
        limit = f"a whole number from {PRIORITIES[0]} to {PRIORITIES[-1]}"
        raise InvalidRequest(f"{PRIORITY_HEADER} is {text[:20]!r}, it must be {limit}", field=PRIORITY_HEADER)
    return int(text)


def _deadline(headers: Headers) -> float | None:
    text = headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = 0.0
    if not 0.0 < timeout_s <= _LONGEST_TIMEOUT_S:
        limit = f"a number of seconds above 0 and at most {_LONGEST_TIMEOUT_S:.0f}"
        raise InvalidRequest(f"{TIMEOUT_HEADER} is {text[:20]!r}, it must be {limit}", field=TIMEOUT_HEADER)
    return time.monotonic() + timeout_s

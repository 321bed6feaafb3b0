"""What the pods of the settings say of themselves, one after the other."""

from __future__ import annotations

from contextlib import ExitStack, suppress

from lorafleet_pipeline.exceptions import PromotionError
from lorafleet_pipeline.registry.readiness import PodState
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_serving.client import PodClient, PodError, PodUnreachable

_POD_TIMEOUT_S = 2.0


class PodStates:
    """Connections to all pods. Must be closed."""

    def __init__(self, settings: PlatformSettings) -> None:
        with ExitStack() as closing:
            self._clients = [
                closing.enter_context(PodClient(url, settings.admin_token or None, timeout_s=_POD_TIMEOUT_S))
                for url in settings.pods
            ]
            self._closing = closing.pop_all()
        self._secret = settings.webhook_secret

    def ask(self) -> list[PodState]:
        """The state of each, also of those that do not answer.

        Raises:
            PromotionError: a pod does not take the admin token.
        """
        return [_state(client) for client in self._clients]

    def nudge(self, name: str) -> None:
        """Have each look at an adapter now."""
        for client in self._clients:
            # It looks by itself later, and what keeps it from answering is told as its state.
            with suppress(PodError, PodUnreachable):
                client.nudge(name, self._secret)

    def close(self) -> None:
        """Close the connections."""
        self._closing.close()


def _state(client: PodClient) -> PodState:
    try:
        return PodState(client.url, client.report())
    except PodUnreachable as error:
        return PodState(client.url, None, str(error))
    except PodError as error:
        if error.status in (401, 403):
            raise PromotionError(f"{error}: set LORAFLEET_ADMIN_TOKEN to the pods' token") from error
        return PodState(client.url, None, str(error))

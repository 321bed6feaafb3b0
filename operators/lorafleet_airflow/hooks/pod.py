"""The serving pods as an Airflow connection: type `lorafleet_pod`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook

from lorafleet_airflow.connections import find_connection, pod_urls
from lorafleet_airflow.settings import POD_CONN_ID, POD_CONN_TYPE
from lorafleet_pipeline.settings import PlatformSettings

if TYPE_CHECKING:
    from lorafleet_pipeline.registry.readiness import PodState
    from lorafleet_serving.client import PodClient


class LoRAFleetPodHook(BaseHook):
    """
    Clients of the serving pods. Without the connection, the platform's settings name them.

    :param pod_conn_id: connection of type `lorafleet_pod`.
    :param timeout_s: longest wait for one answer, in seconds.
    """

    conn_name_attr = "pod_conn_id"
    default_conn_name = POD_CONN_ID
    conn_type = POD_CONN_TYPE
    hook_name = "LoRAFleet serving pods"

    def __init__(self, pod_conn_id: str = POD_CONN_ID, *, timeout_s: float = 30.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pod_conn_id = pod_conn_id
        self.timeout_s = timeout_s

    @contextmanager
    def clients(self) -> Iterator[list[PodClient]]:
        """A client of each pod, closed at the end."""
        from lorafleet_serving.client import PodClient

        urls, token = self._addresses()
        with ExitStack() as opened:
            yield [opened.enter_context(PodClient(url, token or None, timeout_s=self.timeout_s)) for url in urls]

    def states(self) -> list[PodState]:
        """What each pod reports, or why it does not."""
        with self.clients() as clients:
            return [state_of(client) for client in clients]

    def test_connection(self) -> tuple[bool, str]:
        """Whether every pod answers with its report."""
        try:
            states = self.states()
        except ValueError as error:
            return False, str(error)
        silent = [f"{state.url}: {state.error}" for state in states if state.error is not None]
        if silent or not states:
            return False, "; ".join(silent) or "no pod is configured: set Host, or LORAFLEET_PODS"
        return True, f"{len(states)} pods report"

    def _addresses(self) -> tuple[tuple[str, ...], str]:
        connection = find_connection(self.pod_conn_id)
        settings = PlatformSettings.load(registry_required=False)
        if connection is None:
            return settings.pods, settings.admin_token
        return pod_urls(connection), connection.password or settings.admin_token


def state_of(client: PodClient) -> PodState:
    """Ask one pod."""
    from lorafleet_pipeline.registry.readiness import PodState
    from lorafleet_serving.client import PodError, PodUnreachable

    try:
        return PodState(client.url, client.report())
    except (PodError, PodUnreachable) as error:
        return PodState(client.url, error=str(error))

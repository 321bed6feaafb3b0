"""Airflow connections read as platform settings.

A connection overrides the address of what it names. Storage, keys and secrets, and everything where there
is no connection, come from `PlatformSettings` (environment, or the embedded stack's file).
"""

from __future__ import annotations

import os
from dataclasses import replace

from airflow.providers.common.compat.sdk import AirflowNotFoundException, Connection
from airflow.sdk import BaseHook

from lorafleet_airflow.exceptions import InvalidConnection
from lorafleet_airflow.settings import POD_CONN_ID, REGISTRY_CONN_ID
from lorafleet_contract.registry import RegistryEndpoint
from lorafleet_pipeline.registry.actor import Actor, How
from lorafleet_pipeline.settings import PlatformSettings

_CALLER = Actor(None, How.DAG).headers
"""Told to the registry, so that its audit log shows what a DAG moved."""

_DEFAULT_CONN_IDS = frozenset({REGISTRY_CONN_ID, POD_CONN_ID})


def find_connection(conn_id: str) -> Connection | None:
    """The connection, or None where a default one was not made.

    Raises:
        AirflowNotFoundException: a connection that somebody named does not exist.
    """
    try:
        return BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        if conn_id in _DEFAULT_CONN_IDS:
            return None
        raise


async def afind_connection(conn_id: str) -> Connection | None:
    """`find_connection` for code on an event loop."""
    try:
        return await BaseHook.aget_connection(conn_id)
    except AirflowNotFoundException:
        if conn_id in _DEFAULT_CONN_IDS:
            return None
        raise


def platform_settings(registry_conn_id: str = REGISTRY_CONN_ID, pod_conn_id: str = POD_CONN_ID) -> PlatformSettings:
    """The platform's settings with the addresses that the connections name."""
    registry, pods = find_connection(registry_conn_id), find_connection(pod_conn_id)
    environ = dict(os.environ)
    if registry is not None:
        environ["LORAFLEET_MLFLOW_URL"] = base_url(registry)
        environ |= _credentials(registry)
    settings = PlatformSettings.load(environ)
    if pods is None:
        return settings
    return replace(settings, pods=pod_urls(pods), admin_token=pods.password or settings.admin_token)


def _credentials(registry: Connection) -> dict[str, str]:
    """The connection's credentials, as MLflow's variables; without any, the variables that are set stand."""
    given = {
        "MLFLOW_TRACKING_USERNAME": registry.login,
        "MLFLOW_TRACKING_PASSWORD": registry.password,
        "MLFLOW_TRACKING_TOKEN": registry.extra_dejson.get("token"),
    }
    return {name: str(value) if value else "" for name, value in given.items()} if any(given.values()) else {}


def registry_endpoint(connection: Connection | None) -> RegistryEndpoint:
    """Address and credentials of the registry."""
    if connection is None:
        return PlatformSettings.load().registry_endpoint(_CALLER)
    extra = connection.extra_dejson
    return RegistryEndpoint(
        url=base_url(connection),
        username=connection.login or None,
        password=connection.password or None,
        token=extra.get("token") or None,
        timeout_s=float(extra.get("timeout_s") or RegistryEndpoint.timeout_s),
        caller=_CALLER,
    )


def pod_urls(connection: Connection) -> tuple[str, ...]:
    """Base addresses of the pods: the host, and the further ones of the field `urls`."""
    more = str(connection.extra_dejson.get("urls") or "")
    urls = [url.strip().rstrip("/") for url in more.split(",") if url.strip()]
    if connection.host:
        urls.insert(0, base_url(connection))
    if not urls:
        raise InvalidConnection(
            f"connection {connection.conn_id!r} names no pod: set Host to http://HOST:PORT, or the field urls"
        )
    return tuple(dict.fromkeys(urls))


def base_url(connection: Connection) -> str:
    """Address of a connection whose host is a URL, or a bare host with port and schema.

    Raises:
        InvalidConnection: it has no host.
    """
    host = (connection.host or "").rstrip("/")
    if not host:
        raise InvalidConnection(f"connection {connection.conn_id!r} has no host: set it to http://HOST:PORT")
    url = host if "://" in host else f"{connection.schema or 'http'}://{host}"
    return f"{url}:{connection.port}" if connection.port else url

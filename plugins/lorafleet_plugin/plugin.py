"""The plugin that Airflow finds by its entry point.

Every component of Airflow imports this module, so it stays light: the application is made when the api-server asks
for it.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

URL_PREFIX = "/lorafleet"


class LoRAFleetPlugin(AirflowPlugin):
    """Adds the Fleet view to Airflow's interface."""

    name = "lorafleet"

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:
        """The application behind the view."""
        from lorafleet_plugin.app import create_app

        return [{"app": create_app(), "url_prefix": URL_PREFIX, "name": "LoRAFleet"}]

    @property
    def external_views(self) -> list[dict[str, Any]]:
        """The entry of the navigation bar."""
        from airflow.configuration import conf

        # Behind a path prefix, Airflow's own address tells the prefix.
        base = str(conf.get("api", "base_url", fallback="")).rstrip("/")
        return [
            {
                "name": "LoRA fleet",
                "href": f"{base}{URL_PREFIX}/",
                "destination": "nav",
                "url_route": "lorafleet",
                "category": "browse",
            }
        ]

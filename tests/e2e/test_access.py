"""Without credentials nothing is to be had: S3, Airflow's plugin, the pod's admin routes."""

from __future__ import annotations

import httpx
import pytest

from tests.e2e.conftest import RunningStack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_s3_refuses_an_anonymous_reader(stack: RunningStack) -> None:
    bucket, _, key = str(stack.demo["uri"]).removeprefix("s3://").partition("/")
    address = f"{stack.settings.s3.endpoint}/{bucket}/{key}/adapter/adapter_model.safetensors"
    assert httpx.get(address).status_code == httpx.codes.FORBIDDEN


def test_plugin_routes_refuse_an_anonymous_reader(stack: RunningStack) -> None:
    for path in ("/", "/adapters"):
        response = httpx.get(f"{stack.status.urls.airflow}/lorafleet{path}", follow_redirects=False)
        assert response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}, path


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/adapters"), ("POST", "/v1/registry/webhook")])
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_admin_routes_of_the_pod_refuse_a_stranger(
    stack: RunningStack, method: str, path: str, headers: dict[str, str]
) -> None:
    response = httpx.request(method, f"{stack.settings.pods[0]}{path}", headers=headers)
    assert response.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}

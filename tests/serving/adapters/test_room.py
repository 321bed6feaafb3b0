"""Adapters that no tier has room for: told as such, and taken once there is room."""

from __future__ import annotations

from lorafleet_contract.states import ServeState
from tests.conftest import MLflowFactory
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.registered_adapter import RegistryHand


def test_a_full_host_tier_is_told_and_the_adapter_taken_once_another_leaves(
    pod_factory: PodFactory, mlflow_factory: MLflowFactory, tiny_adapter: SourceFactory
) -> None:
    own_mlflow = mlflow_factory()
    registry = RegistryHand(own_mlflow)
    first, second = (registry.register(f"tenant-{seed}", tiny_adapter(seed)) for seed in (1, 2))
    size = (tiny_adapter(1).folder / "adapter_model.safetensors").stat().st_size
    pod = pod_factory("--dtype", "float32", "--adapter-host-bytes", str(size * 3 // 2), on=own_mlflow)
    registry.promote(first)
    pod.wait_serving(first.name, 1)
    registry.promote(second)
    failed = pod.wait_state(second.name, 1, ServeState.FAILED)
    assert failed.error is not None
    assert "adapter_host_bytes" in failed.error
    response = pod.http.post("/v1/completions", json={"model": second.name, "prompt": "the", "max_tokens": 1})
    assert response.status_code == 507
    assert response.headers["Retry-After"]
    assert pod.client.complete(first.name, "the", max_tokens=1).digest == first.digest
    registry.client.delete_alias(first.name, "champion")
    pod.wait_serving(second.name, 1)

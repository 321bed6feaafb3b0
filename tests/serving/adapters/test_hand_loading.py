"""Adapters that an administrator loads into a running pod by their address."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE, adapter_digest
from tests.serving.conftest import PodFactory, SourceFactory
from tests.serving.hostile_files import hostile_files
from tests.serving.pod_process import ADMIN_TOKEN, PodProcess
from tests.serving.registered_adapter import RegistryHand

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
NO_ONE = "there-is-nobody"


def load(pod: PodProcess, name: str, address: str, headers: dict[str, str] = ADMIN, **more: object) -> httpx.Response:
    body = {"lora_name": name, "lora_path": address, **more}
    return pod.http.post("/v1/load_lora_adapter", json=body, headers=headers)


def unload(pod: PodProcess, name: str, headers: dict[str, str] = ADMIN) -> httpx.Response:
    return pod.http.post("/v1/unload_lora_adapter", json={"lora_name": name}, headers=headers)


def upload(registry: RegistryHand, folder: Path) -> str:
    """Put an adapter where PEFT would, with nothing beside it."""
    address = f"s3://mlflow/bare/{uuid4().hex}"
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        registry.upload(f"{address}/{name}", (folder / name).read_bytes())
    return address


def ask(pod: PodProcess, name: str) -> httpx.Response:
    return pod.http.post("/v1/completions", json={"model": name, "prompt": "the cat", "max_tokens": 4})


@pytest.fixture
def folder(tiny_adapter: SourceFactory) -> Path:
    """Bytes that no other test has loaded."""
    return tiny_adapter(uuid4().int % 10**6).folder


@pytest.fixture
def loaded(pod: PodProcess, registry: RegistryHand, folder: Path, name: str) -> str:
    assert load(pod, name, upload(registry, folder)).status_code == 200
    return name


def test_what_is_loaded_answers_until_it_is_unloaded(
    pod: PodProcess, registry: RegistryHand, folder: Path, name: str
) -> None:
    base = ask(pod, "tiny-llama").json()["choices"]
    answer = load(pod, name, upload(registry, folder))
    assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter '{name}' added successfully.")
    asked = ask(pod, name)
    assert (asked.headers["x-lorafleet-digest"], asked.headers["x-lorafleet-adapter"]) == (adapter_digest(folder), name)
    assert asked.json()["choices"] != base
    answer = unload(pod, name)
    assert (answer.status_code, answer.text) == (200, f"Success: LoRA adapter '{name}' removed successfully.")
    assert ask(pod, name).status_code == 404
    assert unload(pod, name).status_code == 404


def test_it_is_listed_as_loaded_by_hand(pod: PodProcess, loaded: str, folder: Path) -> None:
    report = next(item for item in pod.client.report().loaded_by_hand if item.name == loaded)
    assert report.digest == adapter_digest(folder)
    entry = next(item for item in pod.http.get("/v1/models").json()["data"] if item["id"] == loaded)
    assert (entry["loaded_by_hand"], entry["digest"], entry["parent"]) == (True, report.digest, "tiny-llama")
    assert loaded in pod.http.get("/info").json()["adapters_loaded_by_hand"]


def test_only_the_administrator_loads_and_unloads(
    pod: PodProcess, registry: RegistryHand, loaded: str, folder: Path
) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert load(pod, NO_ONE, upload(registry, folder), headers).status_code == 401
        assert unload(pod, loaded, headers).status_code == 401
    assert ask(pod, NO_ONE).status_code == 404
    assert ask(pod, loaded).status_code == 200


def test_a_name_is_loaded_twice_only_in_place(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, loaded: str
) -> None:
    other = tiny_adapter(7).folder
    address = upload(registry, other)
    refused = load(pod, loaded, address)
    assert (refused.status_code, "has already been loaded" in refused.text) == (400, True)
    assert load(pod, loaded, address, load_inplace=True).status_code == 200
    assert ask(pod, loaded).headers["x-lorafleet-digest"] == adapter_digest(other)


def test_a_name_of_the_registry_is_not_loaded_by_hand(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, name: str
) -> None:
    registered = registry.register(name, tiny_adapter(8))
    registry.promote(registered)
    pod.wait_serving(name, 1)
    address = upload(registry, tiny_adapter(9).folder)
    assert load(pod, name, address).status_code == 409
    assert load(pod, name, address, load_inplace=True).status_code == 409
    assert unload(pod, name).status_code == 409
    assert load(pod, "tiny-llama", address).status_code == 409
    assert ask(pod, name).headers["x-lorafleet-digest"] == registered.digest


def test_the_registry_wins_a_name_that_it_comes_to_own(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, loaded: str
) -> None:
    registered = registry.register(loaded, tiny_adapter(8))
    registry.promote(registered)
    pod.wait_serving(loaded, 1)
    assert ask(pod, loaded).headers["x-lorafleet-digest"] == registered.digest
    assert loaded not in {item.name for item in pod.client.report().loaded_by_hand}
    log = pod.log.read_text()
    assert any(loaded in line and "ended: the registry owns the name now" in line for line in log.splitlines())


def test_it_has_no_versions(pod: PodProcess, loaded: str) -> None:
    for reference in (f"{loaded}:1", f"{loaded}@champion"):
        answer = pod.http.post("/v1/completions", json={"model": reference, "prompt": "a"}, headers=ADMIN)
        assert (answer.status_code, "bare name" in answer.text) == (404, True)


def test_it_survives_its_engine_and_its_fetcher(pod: PodProcess, loaded: str, folder: Path) -> None:
    before = pod.child_pids()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    pod.wait_for(lambda: not set(pod.child_pids().values()) & set(before.values()) or None, "new processes")
    pod.wait_ready()
    pod.wait_for(lambda: ask(pod, loaded).status_code == 200 or None, f"{loaded} to answer")
    assert ask(pod, loaded).headers["x-lorafleet-digest"] == adapter_digest(folder)


def test_it_comes_back_from_its_address_as_it_was_or_ends(
    pod: PodProcess, registry: RegistryHand, tiny_adapter: SourceFactory, folder: Path, name: str
) -> None:
    address = upload(registry, folder)
    assert load(pod, name, address).status_code == 200
    weights = pod.cache / "adapters" / adapter_digest(folder).removeprefix("sha256:") / WEIGHTS_FILE
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert act(pod, "reload", name).status_code == 200
    assert weights.read_bytes() == good
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    registry.upload(f"{address}/{WEIGHTS_FILE}", (tiny_adapter(10).folder / WEIGHTS_FILE).read_bytes())
    assert act(pod, "reload", name).status_code == 409
    assert ask(pod, name).status_code == 404


def act(pod: PodProcess, action: str, name: str) -> httpx.Response:
    return pod.http.post(f"/v1/adapters/{action}", json={"adapter": name}, headers=ADMIN)


def test_it_is_pinned_and_evicted_as_others_are(pod: PodProcess, loaded: str) -> None:
    assert act(pod, "pin", loaded).json()["pinned"]
    assert act(pod, "evict", loaded).status_code == 409
    assert not act(pod, "unpin", loaded).json()["pinned"]
    assert act(pod, "evict", loaded).status_code == 200
    assert ask(pod, loaded).status_code == 200


def test_one_of_another_base_needs_the_administrators_word(
    pod: PodProcess, registry: RegistryHand, folder: Path, name: str, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    config = json.loads((other / CONFIG_FILE).read_text())
    (other / CONFIG_FILE).write_text(json.dumps({**config, "base_model_name_or_path": "someone/other-base"}))
    address = upload(registry, other)
    refused = load(pod, name, address)
    assert (refused.status_code, "names the base 'someone/other-base'" in refused.text) == (400, True)
    assert load(pod, name, address, base_model_name="another").status_code == 400
    assert load(pod, name, address, base_model_name="tiny-llama").status_code == 200


@pytest.mark.parametrize(
    "address",
    ["s3://mlflow/nothing-here", "s3://other/x", "http://127.0.0.1:1/x", "file:///etc", "/etc", "../x", "s3://mlflow"],
)
def test_what_is_not_there_or_not_allowed_is_refused(pod: PodProcess, name: str, address: str) -> None:
    answer = load(pod, name, address)
    assert (answer.status_code, set(answer.json())) == (400, {"error"})
    assert ask(pod, name).status_code == 404


@pytest.mark.parametrize("body", [{}, {"lora_name": "a"}, {"lora_path": "s3://mlflow/x"}, {"lora_name": ".."}])
def test_a_load_without_name_or_address_is_refused(pod: PodProcess, body: dict[str, str]) -> None:
    assert pod.http.post("/v1/load_lora_adapter", json=body, headers=ADMIN).status_code == 400


def test_hostile_files_are_refused(pod: PodProcess, registry: RegistryHand, folder: Path, tmp_path: Path) -> None:
    before, children = ask(pod, "tiny-llama").json()["choices"], pod.child_pids()
    for name, spoil in hostile_files().items():
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        spoil(copy)
        answer = load(pod, f"hostile-{name}", upload(registry, copy))
        assert answer.status_code == 400, (name, answer.text)
        assert ask(pod, f"hostile-{name}").status_code == 404
    assert pod.child_pids() == children, "a process died of it"
    assert ask(pod, "tiny-llama").json()["choices"] == before


def test_every_load_is_in_the_audit_log(pod: PodProcess, registry: RegistryHand, folder: Path, name: str) -> None:
    address = upload(registry, folder)
    load(pod, name, address)
    load(pod, name, address)
    unload(pod, name)
    lines = [line.partition("lorafleet_serving.audit: ")[2] for line in pod.log.read_text().splitlines()]
    told = [item for item in (json.loads(line) for line in lines if line) if item["adapter"] == name]
    assert [item["action"] for item in told] == ["load", "load", "unload"]
    assert (told[0]["address"], told[0]["outcome"], told[0]["by"]) == (address, "done", "admin")
    assert "already been loaded" in told[1]["outcome"]


def test_a_folder_under_a_root_is_loaded_and_none_elsewhere(
    pod_factory: PodFactory, folder: Path, name: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(folder, root / "good")
    shutil.copytree(folder, tmp_path / "elsewhere")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    shutil.copytree(folder, root / "linked")
    (root / "linked" / WEIGHTS_FILE).unlink()
    (root / "linked" / WEIGHTS_FILE).symlink_to(tmp_path / "elsewhere" / WEIGHTS_FILE)
    shutil.copytree(folder, root / "fifo")
    (root / "fifo" / WEIGHTS_FILE).unlink()
    os.mkfifo(root / "fifo" / WEIGHTS_FILE)
    rooted = pod_factory("--local-roots", str(root))
    rooted.wait_ready()
    for address in ("elsewhere", "root/link", "root/linked", "root/fifo", "root/../elsewhere"):
        answer = load(rooted, name, f"{tmp_path}/{address}")
        assert answer.status_code == 400, (address, answer.text)
    assert load(rooted, name, f"file://{root}/good").status_code == 200
    assert ask(rooted, name).headers["x-lorafleet-digest"] == adapter_digest(folder)
    assert rooted.http.post("/v1/completions", json={"model": f"{root}/good", "prompt": "a"}).status_code == 403

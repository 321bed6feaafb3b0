"""What a pod does at start when it cannot serve, and without a registry."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lorafleet_pipeline.stack.ports import free_port
from lorafleet_serving.client import PodClient, PodError, PodUnreachable
from tests.serving.pod_process import PodProcess


def _run(model: Path, port: int, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorafleet_serving", "--model", str(model), "--port", str(port), *flags]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LORAFLEET_")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_taken_port_ends_the_start_with_one_line(tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = _run(tiny_model, taken.getsockname()[1])
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("lorafleet pod: cannot listen on 127.0.0.1:")
    assert "Traceback" not in ended.stderr


def test_an_unknown_architecture_ends_the_start_with_its_name(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "strange"
    shutil.copytree(tiny_model, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "StrangeForCausalLM").replace('"llama"', '"gpt2"'))
    ended = _run(folder, free_port())
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("lorafleet pod: ")


@pytest.fixture(scope="module")
def lone_pod(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodProcess]:
    """A pod without registry and secrets that computes one sequence at a time."""
    flags = ("--max-waiting", "2", "--max-num-seqs", "1")
    started = PodProcess(tiny_model, tmp_path_factory.mktemp("lone"), free_port(), {}, *flags)
    try:
        started.wait_ready()
        yield started
    finally:
        started.stop()


def test_without_a_registry_the_base_is_served_and_admin_routes_are_shut(lone_pod: PodProcess) -> None:
    assert lone_pod.client.complete("tiny-llama", "the cat", max_tokens=3).num_tokens == 3
    for call in (lone_pod.client.report, lambda: lone_pod.client.nudge("any", "secret")):
        with pytest.raises(PodError) as error:
            call()
        assert error.value.status == 403


def test_too_many_waiting_requests_are_told_when_to_come_back(lone_pod: PodProcess) -> None:
    response = lone_pod.http.post("/v1/completions", json={"prompt": ["the cat"] * 12, "max_tokens": 200})
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert lone_pod.client.complete("", "the cat", max_tokens=2).num_tokens == 2


def test_a_client_tells_when_nobody_answers() -> None:
    with PodClient(f"http://127.0.0.1:{free_port()}") as client:
        assert not client.health()
        assert not client.ready()
        with pytest.raises(PodUnreachable, match="is it running"):
            client.models()


def test_memory_that_is_not_there_ends_the_start_with_the_setting(tiny_model: Path) -> None:
    ended = _run(tiny_model, free_port(), "--kv-cache-bytes", str(1 << 60))
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("lorafleet pod: kv_cache_bytes is ")
    assert "starts again" not in ended.stderr


def test_a_body_beyond_the_limit_is_refused_declared_or_not(lone_pod: PodProcess) -> None:
    body = json.dumps({"prompt": "x" * (5 << 20)}).encode()
    declared = lone_pod.http.post("/v1/completions", content=body)
    streamed = lone_pod.http.post("/generate", content=(body[at : at + 65536] for at in range(0, len(body), 65536)))
    assert (declared.status_code, streamed.status_code) == (413, 413)
    assert "max_body_bytes" in declared.json()["error"]["message"]
    assert streamed.json()["error_type"] == "validation"
    assert lone_pod.client.complete("", "the cat", max_tokens=2).num_tokens == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_the_engine_stands_still_gives_up_its_request(
    lone_pod: PodProcess, stream: bool
) -> None:
    def count(series: str) -> float:
        text = lone_pod.http.get("/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series))

    before = count("lorafleet_adapter_requests_total")
    engine = lone_pod.child_pids()["engine"]
    body = {"prompt": "the", "max_tokens": 240, "ignore_eos": True, "stream": stream}
    os.kill(engine, signal.SIGSTOP)
    try:
        with contextlib.suppress(httpx.ReadTimeout), httpx.Client(base_url=lone_pod.url, trust_env=False) as caller:
            caller.post("/v1/completions", json=body, timeout=0.5)
        # Nothing but the caller's leaving can have ended it.
        lone_pod.wait_for(
            lambda: True if count("lorafleet_adapter_requests_total") > before else None, "the request to be given up"
        )
    finally:
        os.kill(engine, signal.SIGCONT)
    lone_pod.wait_for(lambda: True if count("vllm:num_requests_running") == 0 else None, "the batch to be empty")
    assert lone_pod.client.complete("", "the cat", max_tokens=2).num_tokens == 2

"""What a pod does at start when it cannot serve, and without a registry."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from lorafleet_pipeline.stack.ports import free_port
from lorafleet_serving.client import PodClient, PodError, PodUnreachable
from lorafleet_serving.config import FetcherConfig, PodConfig
from lorafleet_serving.constraint_check import ConstraintCheck
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.pod import Pod
from lorafleet_serving.tokenizer import PodTokenizer
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
    asked = {"prompt": ["the cat"] * 2, "max_tokens": 200, "min_tokens": 200}
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda _: lone_pod.http.post("/v1/completions", json=asked), range(12)))
    turned_away = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(turned_away) < len(answers)
    assert {answer.status_code for answer in turned_away} == {429}
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in turned_away)
    assert lone_pod.client.complete("", "the cat", max_tokens=2).num_tokens == 2


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/completions", {"prompt": ["the cat"] * 3}, "prompt"),
        ("/v1/completions", {"prompt": "the cat", "n": 3}, "n"),
        ("/v1/completions", {"prompt": "the cat", "best_of": 3}, "best_of"),
    ],
)
def test_a_request_for_more_than_can_ever_wait_is_not_told_to_come_back(
    lone_pod: PodProcess, path: str, body: dict[str, object], field: str
) -> None:
    answer = lone_pod.http.post(path, json=body)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == field
    assert "3 answers, and 2 may wait" in answer.json()["error"]["message"]
    assert "Retry-After" not in answer.headers


def test_many_texts_are_embedded_in_turns_that_may_wait(lone_pod: PodProcess) -> None:
    answer = lone_pod.http.post("/v1/embeddings", json={"input": ["the cat"] * 9})
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 9


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/embeddings", {"input": [[99999999]]}, 422, "input"),
        ("/v1/embeddings", {"input": "word " * 100_000}, 413, "input"),
        ("/v1/completions", {"prompt": "word " * 100_000}, 413, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 100_000}]}, 413, "messages"),
    ],
)
def test_a_wrong_prompt_is_named_as_the_caller_calls_it(
    lone_pod: PodProcess, path: str, body: dict[str, object], status: int, field: str
) -> None:
    answer = lone_pod.http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, field)


def test_without_a_number_of_tokens_a_lorax_answer_may_fill_the_model(lone_pod: PodProcess) -> None:
    parameters = {"details": True, "ignore_eos_token": True}
    answer = lone_pod.http.post("/generate", json={"inputs": "the cat", "parameters": parameters})
    limit = lone_pod.http.get("/info").json()["max_total_tokens"]
    assert answer.json()["details"]["generated_tokens"] == limit - int(answer.headers["x-prompt-tokens"])


def test_time_that_runs_out_while_a_prompt_is_read_counts(lone_pod: PodProcess) -> None:
    headers = {"x-request-timeout-s": "0.000001"}
    messages = [{"role": "user", "content": "the cat"}]  # Written and read beside the loop.
    answer = lone_pod.http.post("/v1/chat/completions", json={"messages": messages}, headers=headers)
    assert answer.status_code == 504


def test_what_does_not_end_while_the_pod_drains_ends_with_an_error(tiny_model: Path, tmp_path: Path) -> None:
    pod = PodProcess(tiny_model, tmp_path, free_port(), {}, "--drain-limit", "0.2", "--max-num-seqs", "1")
    try:
        pod.wait_ready()
        asked = {"prompt": "the cat", "max_tokens": 200, "min_tokens": 200, "n": 16, "stream": True}
        with pod.http.stream("POST", "/v1/completions", json=asked) as answer:
            lines = answer.iter_lines()
            assert "choices" in next(lines)
            pod.signal(signal.SIGTERM)
            *_, last = [line for line in lines if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == 503
        assert pod.wait_exit() == 0
    finally:
        pod.stop()


@pytest.mark.parametrize(
    ("name", "plain"), [("PodTokenizer", PodTokenizer), ("ConstraintCheck.prepare", ConstraintCheck.prepare)]
)
async def test_a_pod_is_not_ready_before_it_can_read_prompts_and_constraints(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, plain: Callable[..., object]
) -> None:
    may_read = threading.Event()

    def read(argument: object) -> object:
        assert may_read.wait(300)
        return plain(argument)

    monkeypatch.setattr(f"lorafleet_serving.pod.{name}", read)
    engine = EngineConfig(tiny_model, kv_cache_bytes=8 << 20, num_threads=1)
    failures: list[str] = []
    pod = Pod(PodConfig(engine, FetcherConfig(tmp_path)), on_failure=failures.append)
    start = asyncio.create_task(pod.start())
    try:
        await pod.engine.wait_ready()
        assert not pod.is_ready
        may_read.set()
        await start
        assert pod.is_ready
    finally:
        may_read.set()
        await start
        await pod.stop()
    assert failures == []


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

"""Every method of LoRAX's client, sync and async, against running pods. Runs in the client's own environment.

`session.py SETTINGS` takes JSON and prints JSON: by the name of each check `ok`, or what went wrong.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lorax import AsyncClient, Client, MergedAdapters, errors
from lorax.types import FinishReason

PROMPT = "the cat sat on"
# One property: a random model fills the gaps with blanks, as far as it may.
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"enum": ["cat", "dog"]}},
    "required": ["animal"],
    "additionalProperties": False,
}


class Both:
    """The two clients as one: each call is made with both, and both must agree."""

    def __init__(self, url: str) -> None:
        self.sync, self.parallel = Client(url), AsyncClient(url)

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The result of a method; `generate_stream` gives a list."""
        if method == "generate_stream":
            result: Any = list(self.sync.generate_stream(*arguments, **options))
            other = asyncio.run(_collect(self.parallel.generate_stream(*arguments, **options)))
        else:
            result = getattr(self.sync, method)(*arguments, **options)
            other = asyncio.run(getattr(self.parallel, method)(*arguments, **options))
        assert result == other, f"the clients got {result} and {other}"
        return result

    def refused(self, kind: type[Exception], method: str, *arguments: Any, **options: Any) -> str:
        """The message of an error that both raise."""
        messages = []
        for client in (self.sync, self.parallel):
            call = getattr(client, method, None)
            if call is None:
                continue  # The async client lacks classify_batch.
            try:
                _finish(call(*arguments, **options))
            except kind as error:
                messages.append(str(error))
            else:
                raise AssertionError(f"{method} of {type(client).__name__} raised nothing")
        assert len(set(messages)) == 1, messages
        return messages[0]


def _finish(result: Any) -> Any:
    if inspect.isawaitable(result):
        return asyncio.run(_await(result))
    if inspect.isasyncgen(result):
        return asyncio.run(_collect(result))
    return list(result) if inspect.isgenerator(result) else result


async def _await(result: Awaitable[Any]) -> Any:
    return await result


async def _collect(stream: Any) -> list[Any]:
    return [item async for item in stream]


class Session:
    """The checks; each is a method whose name begins with `check_`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.adapters: list[str] = settings["adapters"]
        self.frail_log: str = settings["frail_log"]
        self.pod, self.frail = Both(settings["url"]), Both(settings["frail_url"])

    def run(self) -> dict[str, str]:
        """The outcome of each, in the order of the source: the last ones break their pod."""
        results = {}
        for name, check in self.checks():
            try:
                check()
                results[name] = "ok"
            except Exception:  # Each check is told by itself; the test that started this one fails by the trace.
                results[name] = traceback.format_exc()
        return results

    def checks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Names and checks."""
        for name in vars(type(self)):
            if name.startswith("check_"):
                yield name.removeprefix("check_"), getattr(self, name)

    def check_generate(self) -> None:
        answer = self.pod.call("generate", PROMPT, max_new_tokens=6)
        assert answer.details.finish_reason == FinishReason.Length
        assert answer.details.generated_tokens == len(answer.details.tokens) == 6
        assert "".join(token.text for token in answer.details.tokens) == answer.generated_text
        adapted = self.pod.call("generate", PROMPT, adapter_id=self.adapters[0], adapter_source="hub", max_new_tokens=6)
        assert adapted.generated_text != answer.generated_text
        assert self.pod.call("generate", PROMPT, max_new_tokens=6, details=False).details is None

    def check_options(self) -> None:
        whole = self.pod.call("generate", PROMPT, max_new_tokens=12, return_full_text=True, ignore_eos_token=True)
        assert whole.generated_text.startswith(PROMPT)
        text = whole.generated_text[len(PROMPT) :]
        stopped = self.pod.call("generate", PROMPT, max_new_tokens=12, stop_sequences=[text[4]])
        assert stopped.details.finish_reason == FinishReason.StopSequence
        assert stopped.generated_text == text[: text.index(text[4])]
        cut = self.pod.call("generate", PROMPT, max_new_tokens=2, truncate=2)
        assert cut.details.prompt_tokens == 2
        drawn = {"do_sample": True, "temperature": 1.4, "top_k": 50, "top_p": 0.9, "typical_p": 0.9, "seed": 7}
        sampled = self.pod.call("generate", PROMPT, max_new_tokens=8, repetition_penalty=1.2, **drawn)
        assert sampled.details.seed == 7
        self.pod.call("generate", PROMPT, max_new_tokens=2, api_token="anything", watermark=False)

    def check_details(self) -> None:
        answer = self.pod.call(
            "generate", PROMPT, max_new_tokens=3, decoder_input_details=True, return_k_alternatives=3
        )
        assert "".join(token.text for token in answer.details.prefill) == PROMPT
        assert [token.logprob is None for token in answer.details.prefill].count(True) == 1
        for token in answer.details.tokens:
            assert len(token.alternative_tokens) == 3
            assert token.alternative_tokens[0].id == token.id
            assert token.alternative_tokens[0].logprob == token.logprob

    def check_best_of(self) -> None:
        # The seeds are drawn anew in each call, so that the two clients cannot agree.
        options = {"max_new_tokens": 4, "best_of": 3, "do_sample": True}
        for answer in (
            self.pod.sync.generate(PROMPT, **options),
            asyncio.run(self.pod.parallel.generate(PROMPT, **options)),
        ):
            assert len(answer.details.best_of_sequences) == 2
            assert answer.details.seed is not None

    def check_generate_stream(self) -> None:
        whole = self.pod.call("generate", PROMPT, adapter_id=self.adapters[0], max_new_tokens=6)
        parts = self.pod.call("generate_stream", PROMPT, adapter_id=self.adapters[0], max_new_tokens=6)
        assert [part.token for part in parts] == whole.details.tokens
        assert [part.generated_text for part in parts] == [None] * 5 + [whole.generated_text]
        assert parts[-1].details.generated_tokens == 6
        assert parts[-1].details.finish_reason == FinishReason.Length

    def check_merged_adapters(self) -> None:
        answers = set()
        for strategy in ("linear", "ties", "dare_linear", "dare_ties"):
            merged = MergedAdapters(
                ids=self.adapters,
                weights=[0.8, -0.5],
                merge_strategy=strategy,
                density=0.6,
                majority_sign_method="frequency",
            )
            answer = self.pod.call("generate", PROMPT, merged_adapters=merged, max_new_tokens=8)
            parts = self.pod.call("generate_stream", PROMPT, merged_adapters=merged, max_new_tokens=8)
            assert parts[-1].generated_text == answer.generated_text
            answers.add(answer.generated_text)
        assert len(answers) > 1

    def check_response_format(self) -> None:
        wanted = {"type": "json_object", "schema": SCHEMA}
        for adapter_id in (None, self.adapters[0]):
            answer = self.pod.call(
                "generate", PROMPT, adapter_id=adapter_id, response_format=wanted, max_new_tokens=240
            )
            assert json.loads(answer.generated_text) in ({"animal": "cat"}, {"animal": "dog"})
        parts = self.pod.call(
            "generate_stream", PROMPT, adapter_id=self.adapters[0], response_format=wanted, max_new_tokens=240
        )
        assert parts[-1].generated_text == answer.generated_text

    def check_embed(self) -> None:
        assert len(self.pod.call("embed", PROMPT).embeddings) == 64

    def check_classify_is_refused_by_name(self) -> None:
        assert "classify is not served" in self.pod.refused(errors.ValidationError, "classify", PROMPT)
        assert "classify is not served" in self.pod.refused(errors.ValidationError, "classify_batch", [PROMPT])

    def check_validation_error(self) -> None:
        for method in ("generate", "generate_stream"):
            assert "max_new_tokens is 0" in self.pod.refused(errors.ValidationError, method, PROMPT, max_new_tokens=0)
            assert "watermark" in self.pod.refused(errors.ValidationError, method, PROMPT, watermark=True)

    def check_not_found_error(self) -> None:
        merged = MergedAdapters(ids=["nobody"], weights=[1.0], density=1.0)
        for method in ("generate", "generate_stream"):
            assert "nobody" in self.pod.refused(errors.NotFoundError, method, PROMPT, adapter_id="nobody")
            assert "nobody" in self.pod.refused(errors.NotFoundError, method, PROMPT, merged_adapters=merged)

    def check_forbidden(self) -> None:
        # The client calls every 403 that of a shard which is not ready.
        name = f"{self.adapters[0]}:1"
        for method in ("generate", "generate_stream"):
            assert "admin token" in self.pod.refused(errors.ShardNotReadyError, method, PROMPT, adapter_id=name)

    def check_generation_error(self) -> None:
        for method in ("generate", "generate_stream"):
            assert "not finite" in self.frail.refused(errors.GenerationError, method, "a # b", max_new_tokens=4)

    def check_overloaded_error(self) -> None:
        options = {"max_new_tokens": 200, "ignore_eos_token": True}

        def is_refused(_: int) -> bool:
            try:
                Client(self.frail.sync.base_url).generate(PROMPT, **options)
            except errors.OverloadedError:
                return True
            return False

        async def flood() -> list[Any]:
            asked = (self.frail.parallel.generate(PROMPT, **options) for _ in range(12))
            return await asyncio.gather(*asked, return_exceptions=True)

        with ThreadPoolExecutor(12) as pool:
            assert any(pool.map(is_refused, range(12)))
        found = asyncio.run(flood())
        assert any(isinstance(item, errors.OverloadedError) for item in found)
        assert not any(isinstance(item, Exception) and not isinstance(item, errors.OverloadedError) for item in found)

    def check_incomplete_generation_error(self) -> None:
        engine = self._engine_pid()
        os.kill(engine, signal.SIGSTOP)  # So that none can end before.
        raised: list[type[BaseException]] = []

        def read(stream: Any) -> None:
            try:
                _finish(stream)
            except errors.IncompleteGenerationError as error:
                raised.append(type(error))

        clients = (self.frail.sync, self.frail.parallel)
        readers = [threading.Thread(target=read, args=(item.generate_stream(PROMPT),)) for item in clients]
        readers[0].start()
        _wait(lambda: self._num_in_flight() == 1)
        readers[1].start()
        _wait(lambda: self._num_in_flight() == 2)
        os.kill(engine, signal.SIGKILL)
        for reader in readers:
            reader.join()
        assert len(raised) == 2

    def check_unknown_error(self) -> None:
        # The engine starts again: 503, for which the client has no class.
        assert "503" in self.frail.refused(errors.UnknownError, "embed", PROMPT)

    def _engine_pid(self) -> int:
        with open(self.frail_log) as log:
            started = [line for line in log if "engine process started, pid " in line]
        return int(started[-1].rpartition(" ")[2])

    def _num_in_flight(self) -> int:
        import requests

        text = requests.get(f"{self.frail.sync.base_url}/metrics", timeout=10).text
        line = next(line for line in text.splitlines() if line.startswith("lorafleet_requests_in_flight"))
        return int(float(line.rpartition(" ")[2]))


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


if __name__ == "__main__":
    print(json.dumps(Session(json.loads(sys.argv[1])).run()))

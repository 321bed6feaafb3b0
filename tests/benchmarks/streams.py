"""Requests that are streamed, and what their callers saw of the time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

_TOLD = ("tokens_per_s", "ttft_p50", "ttft_p99_to_p50", "itl_p50", "itl_p99_to_p50")


@dataclass
class Timings:
    """What the users of one load saw, in seconds."""

    ttft: list[float] = field(default_factory=list)
    between_tokens: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    def add(self, other: Timings) -> None:
        """Take in what another load saw."""
        self.ttft += other.ttft
        self.between_tokens += other.between_tokens
        self.total += other.total
        self.num_tokens += other.num_tokens
        self.seconds += other.seconds
        self.errors += other.errors

    def summary(self) -> dict[str, float]:
        """Mean and percentiles of each that was seen, throughput, and the number of errors."""
        figures = {"tokens_per_s": self.num_tokens / self.seconds, "requests": float(len(self.total))}
        figures["errors"] = float(len(self.errors))
        for name, values in (("ttft", self.ttft), ("itl", self.between_tokens), ("total", self.total)):
            if values:
                figures[f"{name}_mean"] = statistics.fmean(values)
                figures |= {f"{name}_p{percent}": percentile(values, percent) for percent in (50, 90, 99)}
                figures[f"{name}_p99_to_p50"] = figures[f"{name}_p99"] / figures[f"{name}_p50"]
        return figures

    def told(self) -> str:
        """The figures that matter most, and what went wrong."""
        figures = self.summary()
        text = ", ".join(f"{key} {figures[key]:.3g}" for key in _TOLD if key in figures)
        return f"{text}, {len(self.errors)} errors {self.errors[:1] or ''}".rstrip()


async def ask(
    session: ClientSession,
    model: str,
    prompt: str | list[int],
    max_tokens: int,
    timings: Timings,
    end: float,
    begin: float = 0.0,
) -> None:
    """One request; tokens that come before the measurement begins, or after its end, do not count for throughput."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "min_tokens": max_tokens, "stream": True}
    asked = last = time.perf_counter()
    is_first = True
    try:
        async with session.post("/v1/completions", json=body) as response:
            if response.status != HTTPStatus.OK:
                timings.errors.append(f"{response.status} {(await response.read())[:200]!r}")
                return
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                now = time.perf_counter()
                if line.startswith(b'data: {"error"'):
                    timings.errors.append(line[:200].decode())
                    return
                (timings.ttft if is_first else timings.between_tokens).append(now - last)
                is_first, last = False, now
                timings.num_tokens += begin <= now <= end
    except (ClientError, TimeoutError) as error:
        timings.errors.append(repr(error))
        return
    timings.total.append(last - asked)


def open_session(url: str) -> ClientSession:
    """A client of one pod."""
    # Light, for it takes its time from the two cores that the pod computes on.
    return ClientSession(url, timeout=ClientTimeout(total=120), connector=TCPConnector(limit=0))


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent of the values do not exceed, about."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

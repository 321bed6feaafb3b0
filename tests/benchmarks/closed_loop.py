"""Clients that ask one adapter while its champion moves, and whether each answer is of a version that could give it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from lorafleet_serving.client import PodClient, PodError, PodUnreachable
from tests.benchmarks.fixed_answers import MAX_TOKENS, PROMPT


@dataclass
class _Move:
    digest: str
    began: float
    served: float | None = None


@dataclass
class Moves:
    """Who could answer at which time: a version from the call that moves the name to it until the next is served."""

    _moves: list[_Move] = field(default_factory=list)

    @contextmanager
    def to(self, digest: str) -> Iterator[None]:
        """The name moves to a digest, and every pod serves it when the block ends."""
        move = _Move(digest, time.monotonic())
        self._moves.append(move)
        yield
        move.served = time.monotonic()

    def could_answer(self, digest: str, began: float, ended: float) -> bool:
        """Whether a digest could answer a request that was under way from `began` to `ended`."""
        following = [*(move.served for move in self._moves[1:]), None]
        return any(
            move.digest == digest and move.began <= ended and (replaced is None or replaced >= began)
            for move, replaced in zip(self._moves, following, strict=True)
        )


@dataclass(frozen=True)
class _Answer:
    digest: str
    text: str
    began: float
    ended: float


@dataclass
class ClosedLoop:
    """Clients that each send a request, wait for the whole answer, and send the next."""

    url: str
    model: str
    num_clients: int
    moves: Moves = field(default_factory=Moves)
    answers_of: Mapping[str, str] = field(default_factory=dict)
    """What a version of each digest says."""
    failures: list[str] = field(default_factory=list)
    _answers: list[_Answer] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep the clients going while the block runs."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._client, args=(stop,)) for _ in range(self.num_clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    @property
    def answered(self) -> int:
        """Requests that were answered."""
        return len(self._answers)

    @property
    def mixed(self) -> int:
        """Answers by a version that should not have given them: none yet moved to, or one replaced before."""
        return sum(not self.moves.could_answer(item.digest, item.began, item.ended) for item in self._answers)

    @property
    def num_known(self) -> int:
        """Answers of versions of which it is known what they say."""
        return sum(item.digest in self.answers_of for item in self._answers)

    @property
    def garbled(self) -> int:
        """Answers that are not what the version says by which they claim to be."""
        return sum(item.text != self.answers_of.get(item.digest, item.text) for item in self._answers)

    def _client(self, stop: threading.Event) -> None:
        with PodClient(self.url) as client:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    answer = client.complete(model=self.model, prompt=PROMPT, max_tokens=MAX_TOKENS)
                    self._answers.append(_Answer(answer.digest, answer.text, began, time.monotonic()))
                except (PodError, PodUnreachable) as error:
                    self.failures.append(repr(error))

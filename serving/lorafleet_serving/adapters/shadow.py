"""What a shadow would have answered: compared with what the champion did answer to the same requests."""

from __future__ import annotations

from dataclasses import replace

from lorafleet_serving.adapters.answer_watch import WatchedAnswer
from lorafleet_serving.adapters.evidence import AnswerSeen, Evidence


class Shadow:
    """The answers of one name's shadow beside those of one champion."""

    def __init__(self, champion: int, champion_digest: str, version: int, digest: str, window_s: float) -> None:
        self.champion = champion
        self.champion_digest = champion_digest
        self.version = version
        self.digest = digest
        self.num_answers = 0
        """Answers of both to one request that were compared."""
        self.num_same = 0
        """Those that were alike, token for token. Where answers are sampled, chance alone tells them apart."""
        self.num_skipped = 0
        """Requests that were not mirrored, since the pod had no room or time for it."""
        self.doubt: str | None = None
        """What speaks against the shadow now, beyond doubt."""
        self._evidence = Evidence(window_s)

    @property
    def pair(self) -> tuple[int, str, int, str]:
        """What is compared: the versions of champion and shadow, each with its digest."""
        return self.champion, self.champion_digest, self.version, self.digest

    def compare(self, champion: WatchedAnswer, own: WatchedAnswer) -> None:
        """Take in the two answers to one request."""
        self.num_answers += 1
        self.num_same += own.seen.failed is None and own.token_ids == champion.token_ids
        self._evidence.note_champion(_untimed(champion.seen))
        self.doubt = self._evidence.note_challenger(_untimed(own.seen))


def _untimed(seen: AnswerSeen) -> AnswerSeen:
    """Times tell nothing here: a shadow computes when others leave it the time."""
    return replace(seen, first_token_s=None, token_s=None)

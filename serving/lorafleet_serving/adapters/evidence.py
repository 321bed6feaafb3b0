"""What a challenger's answers say against it, beside the champion's of the same time.

Both are asked alike, since chance or a caller's name decides who answers: what differs between them is the version's
doing. A verdict needs both a difference that matters and one that chance does not make, at odds that leave none to
chance in all the looks of a canary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from lorafleet_serving.adapters.significance import greater, more_often

_ODDS = 1e-5
"""Probability below which a difference is no chance."""
_MOST_KEPT = 400
"""Latest answers of each side that are looked at."""
_FEWEST_RANKED = 8
"""Answers of each side from which times are compared."""
_FEWEST_GOOD = 20
"""Answers without failure that a champion is credited with: one that serves seldom fails."""
_PERIODS = range(1, 33)
_LOOP_TOKENS = 48
"""Last tokens of an answer that one period makes where it loops."""


@dataclass(frozen=True)
class AnswerSeen:
    """One answer that came to its end."""

    failed: str | None = None
    """Why the engine gave up, where it did; nothing else is known then."""
    is_empty: bool = False
    """Whether it has no text."""
    is_cut: bool = False
    """Whether it was not over when it had all the tokens that it may have."""
    is_looping: bool = False
    first_token_s: float | None = None
    token_s: float | None = None
    """Mean time between its tokens."""
    mean_logprob: float | None = None
    """Of its tokens, by the version that chose them."""


class _Share(NamedTuple):
    """A kind of answer that should not become more frequent."""

    attribute: str
    told: str
    least_more: float
    """By how much, as a share of all answers, before it matters."""


class _Measure(NamedTuple):
    """What should not become worse."""

    attribute: str
    told: str
    least_ratio: float
    """The challenger's median over the champion's before it matters."""
    least_more: float
    """The difference of the medians before it does, likewise."""
    sign: int = 1
    """-1 where less is worse."""


_SHARES = (
    _Share("failed", "failed", 0.02),
    _Share("is_empty", "empty", 0.1),
    _Share("is_looping", "repeating themselves without end", 0.1),
    _Share("is_cut", "cut off at their length", 0.2),
)
_MEASURES = (
    _Measure("first_token_s", "s to the first token", 1.5, 0.05),
    _Measure("token_s", "s per token", 1.5, 0.005),
    _Measure("mean_logprob", "mean log-probability of a token", 0.0, 0.7, sign=-1),
)


class Evidence:
    """Answers of champion and challenger within a window of time, on the clock of `time.monotonic`."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._champion: deque[tuple[float, AnswerSeen]] = deque(maxlen=_MOST_KEPT)
        self._challenger: deque[tuple[float, AnswerSeen]] = deque(maxlen=_MOST_KEPT)
        self.num_answers = 0
        """The challenger's, since its canary began."""

    def begin_anew(self) -> None:
        """Forget what was answered: another champion answers from now on.

        What the challenger answered goes too, since it is held against answers of the same time alone.
        """
        self._champion.clear()
        self._challenger.clear()

    def note_champion(self, seen: AnswerSeen) -> None:
        """Take in an answer of the champion."""
        self._champion.append((time.monotonic(), seen))

    def note_challenger(self, seen: AnswerSeen) -> str | None:
        """Take in an answer of the challenger; returns what is wrong with it, once that is beyond doubt."""
        self._challenger.append((time.monotonic(), seen))
        self.num_answers += 1
        champion, challenger = self._recent(self._champion), self._recent(self._challenger)
        return next(_against(challenger, champion), None)

    def _recent(self, answers: deque[tuple[float, AnswerSeen]]) -> list[AnswerSeen]:
        oldest = time.monotonic() - self._window_s
        while answers and answers[0][0] < oldest:
            answers.popleft()
        return [seen for _, seen in answers]


def is_looping(token_ids: Sequence[int]) -> bool:
    """Whether an answer ends in a few tokens that come again and again."""
    tail = token_ids[-_LOOP_TOKENS:]
    if len(tail) < _LOOP_TOKENS:
        return False
    # At least three times, or a table's rows would be taken for a loop.
    periods = (period for period in _PERIODS if 3 * period <= _LOOP_TOKENS)
    return any(all(tail[i] == tail[i + period] for i in range(_LOOP_TOKENS - period)) for period in periods)


def _against(challenger: Sequence[AnswerSeen], champion: Sequence[AnswerSeen]) -> Iterator[str]:
    for share in _SHARES:
        yield from _too_many(share, challenger, champion)
    ended = [seen for seen in challenger if seen.failed is None]
    for measure in _MEASURES:
        yield from _too_bad(measure, ended, [seen for seen in champion if seen.failed is None])


def _too_many(share: _Share, challenger: Sequence[AnswerSeen], champion: Sequence[AnswerSeen]) -> Iterator[str]:
    hits = [seen for seen in challenger if getattr(seen, share.attribute)]
    other_hits = sum(bool(getattr(seen, share.attribute)) for seen in champion)
    other_among = max(len(champion), _FEWEST_GOOD) if share.attribute == "failed" else len(champion)
    if not other_among or len(hits) / len(challenger) < other_hits / other_among + share.least_more:
        return
    if more_often(len(hits), len(challenger), other_hits, other_among) < _ODDS:
        reason = f" ({hits[-1].failed})" if hits[-1].failed else ""
        yield (
            f"{len(hits)} of its last {len(challenger)} answers were {share.told}{reason}, "
            f"{other_hits} of the champion's {len(champion)}"
        )


def _too_bad(measure: _Measure, challenger: Sequence[AnswerSeen], champion: Sequence[AnswerSeen]) -> Iterator[str]:
    values, others = _values(measure, challenger), _values(measure, champion)
    if min(len(values), len(others)) < _FEWEST_RANKED:
        return
    ours, theirs = median(values), median(others)
    worse = measure.sign * (ours - theirs)
    if worse < measure.least_more or abs(ours) < measure.least_ratio * abs(theirs):
        return
    signed = [measure.sign * value for value in values], [measure.sign * value for value in others]
    if greater(*signed) < _ODDS:
        yield f"{measure.told}: {ours:.3g} in the median of {len(values)} answers, the champion's is {theirs:.3g}"


def _values(measure: _Measure, answers: Sequence[AnswerSeen]) -> list[float]:
    return [value for seen in answers if (value := getattr(seen, measure.attribute)) is not None]

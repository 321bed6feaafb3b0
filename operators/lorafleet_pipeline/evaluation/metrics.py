"""How an answer is judged against its reference: a score from 0 to 1 for each example, more is better."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from lorafleet_pipeline.spec import Metric

Score = Callable[[str, str], float]
"""Takes answer and reference."""

_WORD = re.compile(r"[a-z0-9]+")
# The minus of 5-10 is none of 10, and commas stand between groups of three: 1,800 is one number, 1,2 are two.
_NUMBER = re.compile(r"(?:(?<![\w).])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_WHOLE_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, lower-cased, without punctuation or stemming."""
    given, wanted = _WORD.findall(answer.lower()), _WORD.findall(reference.lower())
    num_common = _common_len(given, wanted)
    return 2 * num_common / (len(given) + len(wanted)) if num_common else 0.0


def accuracy(answer: str, reference: str) -> float:
    """Whether the answer is the label: equal but for case, spacing and closing points, or equal as a number."""
    given, wanted = _label(answer), _label(reference)
    if given == wanted:
        return 1.0
    numbers = _WHOLE_NUMBER.fullmatch(given) and _WHOLE_NUMBER.fullmatch(wanted)
    return float(bool(numbers) and float(given) == float(wanted))


def exact_match(answer: str, reference: str) -> float:
    """Whether the texts are equal but for surrounding white space."""
    return float(answer.strip() == reference.strip())


def entity_f1(answer: str, reference: str) -> float:
    """F1 over entities, given as JSON: an object of lists of texts, by type. An answer of another form scores 0.

    Raises:
        ValueError: the reference is not of that form.
    """
    wanted = _entities(reference)
    if wanted is None:
        raise ValueError("a reference is not a JSON object of lists of texts, which entity_f1 needs")
    given = _entities(answer)
    if given is None:
        return 0.0
    if not given and not wanted:
        return 1.0
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


def last_number(answer: str, reference: str) -> float:
    """Whether the last numbers of both texts are equal; commas between digits and currency signs do not count.

    Raises:
        ValueError: the reference holds no number.
    """
    wanted = _NUMBER.findall(reference)
    if not wanted:
        raise ValueError("a reference holds no number, which last_number needs")
    given = _NUMBER.findall(answer)
    return float(bool(given) and _value(given[-1]) == _value(wanted[-1]))


SCORES: dict[Metric, Score] = {
    Metric.ROUGE_L: rouge_l,
    Metric.ACCURACY: accuracy,
    Metric.EXACT_MATCH: exact_match,
    Metric.ENTITY_F1: entity_f1,
    Metric.LAST_NUMBER: last_number,
}
"""Every metric that a spec may name."""


def _common_len(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    above = [0] * (len(right) + 1)
    for word in left:
        row = [0]
        for (corner, up), other in zip(pairwise(above), right, strict=True):
            row.append(corner + 1 if word == other else max(up, row[-1]))
        above = row
    return above[-1]


def _label(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(". ")


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _entities(text: str) -> Counter[tuple[str, str]] | None:
    """Entities with their type; None if the text is not of that form."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    found: Counter[tuple[str, str]] = Counter()
    for kind, texts in document.items():
        if not isinstance(texts, list) or not all(isinstance(item, str) for item in texts):
            return None
        found.update((kind, " ".join(item.split())) for item in texts)
    return found

"""Learning rate and early stopping."""

from __future__ import annotations

import math

import pytest

from lorafleet_pipeline.training.early_stopping import EarlyStopping
from lorafleet_pipeline.training.schedule import CosineSchedule


def test_rate_warms_up_to_its_peak_and_falls_along_a_cosine() -> None:
    schedule = CosineSchedule(peak=1.0, num_steps=110, warmup_fraction=10 / 110)
    assert [schedule.at(step) for step in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1.0])
    assert schedule.at(11) == pytest.approx(1.0)
    assert schedule.at(61) == pytest.approx(0.5)
    assert 0 < schedule.at(110) < 0.001
    rates = [schedule.at(step) for step in range(11, 111)]
    assert rates == sorted(rates, reverse=True)


def test_rate_without_warm_up_starts_at_its_peak() -> None:
    assert CosineSchedule(peak=0.3, num_steps=1, warmup_fraction=0.0).at(1) == 0.3


def test_training_stops_after_enough_looks_without_a_better_one() -> None:
    stopping = EarlyStopping(patience=2)
    seen = [(stopping.look(step, loss), stopping.is_due) for step, loss in enumerate((3.0, 2.0, 2.5, 1.9, 1.9, 4.0))]
    assert seen == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]
    assert (stopping.best_step, stopping.best_loss) == (3, 1.9)


def test_without_patience_training_never_stops_early() -> None:
    stopping = EarlyStopping(patience=None)
    for step in range(50):
        stopping.look(step, math.exp(step / 10))
    assert not stopping.is_due

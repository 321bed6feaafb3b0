"""What of a step's progress is written to the task's log."""

from __future__ import annotations

from lorafleet_airflow.progress import ProgressLog
from lorafleet_pipeline.evaluation.progress import Contestant, EvaluationProgress
from lorafleet_pipeline.training.progress import TrainingPhase, TrainingProgress


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, template: str, *values: object) -> None:
        self.lines.append(template % values)


def _step(number: int, validation_loss: float | None = None) -> TrainingProgress:
    return TrainingProgress(
        TrainingPhase.TRAINING, number, 100, 2.0, 1e-4, 500.0, 60.0, validation_loss=validation_loss
    )


def test_lines_name_step_loss_speed_and_time_left() -> None:
    log = _Log()
    ProgressLog(log).training(_step(40))
    (line,) = log.lines
    for part in ("40/100", "2.0", "500 tokens/s", "60 s"):
        assert part in line


def test_a_fast_training_does_not_flood_the_log() -> None:
    log, now = _Log(), [0.0]
    write = ProgressLog(log, every_s=5.0, clock=lambda: now[0]).training
    for number in range(1, 51):
        now[0] += 0.2
        write(_step(number))
    assert len(log.lines) == 2


def test_phases_the_last_step_and_validation_losses_are_always_written() -> None:
    log = _Log()
    write = ProgressLog(log, clock=lambda: 0.0).training
    write(TrainingProgress(TrainingPhase.LOADING, 0, 100))
    write(_step(1))
    write(_step(2))
    write(_step(20, validation_loss=1.5))
    write(_step(100))
    assert len(log.lines) == 4
    assert "1.5" in log.lines[2]


def test_every_contestant_of_an_evaluation_is_seen_to_begin_and_to_end() -> None:
    log = _Log()
    write = ProgressLog(log, clock=lambda: 0.0).evaluation
    write(EvaluationProgress(None, 0, 9))
    for contestant in (Contestant.BASE, Contestant.CANDIDATE):
        for done in range(1, 10):
            write(EvaluationProgress(contestant, done, 9))
    assert [line.partition("/")[0] for line in log.lines[1:]] == ["base 1", "base 9", "candidate 1", "candidate 9"]

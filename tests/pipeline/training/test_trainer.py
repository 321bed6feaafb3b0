"""The training loop on a tiny model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafleet_pipeline.exceptions import TrainingDiverged
from lorafleet_pipeline.spec import Method, MethodSection, TrainingSection
from lorafleet_pipeline.training.checkpoint import CheckpointStore
from lorafleet_pipeline.training.data import TokenizedExample
from lorafleet_pipeline.training.methods import METHODS
from lorafleet_pipeline.training.progress import TrainingProgress
from lorafleet_pipeline.training.trainer import Trainer, TrainerData, TrainingOutcome

CPU = torch.device("cpu")


def _data(count: int = 24) -> TrainerData:
    """A pattern that can be learnt: the answer repeats the prompt's token."""
    examples = tuple(
        TokenizedExample((5 + index % 7, 20, *[5 + index % 7] * (1 + index % 4), 0), 2) for index in range(count)
    )
    return TrainerData(train=examples, validation=examples[:6], pad_id=0)


class _Run:
    """A trainer with its reports."""

    def __init__(self, base: Path, folder: Path, data: TrainerData | None = None, **section: Any) -> None:
        torch.manual_seed(0)
        self.reports: list[TrainingProgress] = []
        method = MethodSection(type=Method.LORA, r=4, target_modules=("q_proj", "v_proj"), dropout=0.1)
        self.model = METHODS[Method.LORA].build(base, "base", method, CPU).model
        settings = {"steps": 10, "batch_size": 4, "learning_rate": 0.02, "checkpoint_every": 5, **section}
        self.trainer = Trainer(
            self.model, TrainingSection(**settings), data or _data(), CheckpointStore(folder), self.reports.append, CPU
        )

    def train(self) -> TrainingOutcome:
        self.trainer.setup()
        outcome = self.trainer.train()
        self.trainer.cleanup()
        return outcome

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in self.model.named_parameters() if value.requires_grad}


def _same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_loss_falls_and_every_step_is_reported(tiny_base: Path, tmp_path: Path) -> None:
    run = _Run(tiny_base, tmp_path, steps=20)
    outcome = run.train()
    losses = [report.loss for report in run.reports if report.loss is not None]
    assert [report.step for report in run.reports] == list(range(1, 21))
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert outcome.num_steps == 20
    assert run.reports[-1].eta_s == 0.0
    looked = [report.step for report in run.reports if report.validation_loss is not None]
    assert looked == [5, 10, 15, 20]


def test_resumed_training_ends_with_the_same_weights(tiny_base: Path, tmp_path: Path) -> None:
    whole = _Run(tiny_base, tmp_path / "whole")
    expected = whole.train()

    class StopError(Exception):
        pass

    first = _Run(tiny_base, tmp_path / "parts")

    def stop_at_seven(report: TrainingProgress) -> None:
        if report.step == 7:
            raise StopError

    first.trainer._report = stop_at_seven
    with pytest.raises(StopError):
        first.train()
    second = _Run(tiny_base, tmp_path / "parts")
    outcome = second.train()
    assert second.reports[0].step == 6
    assert _same(whole.weights(), second.weights())
    assert replace(outcome, seconds=0) == replace(expected, seconds=0)


def test_finished_training_is_not_trained_further(tiny_base: Path, tmp_path: Path) -> None:
    first, second = _Run(tiny_base, tmp_path), _Run(tiny_base, tmp_path)
    assert first.train() == second.train()
    assert second.reports == []
    assert _same(first.weights(), second.weights())


def test_accumulated_parts_weigh_by_their_tokens(tiny_base: Path, tmp_path: Path) -> None:
    # One batch of eight and four parts of two hold the same examples, since an epoch is one step.
    data = replace(_data(8), validation=())
    options = {"steps": 3, "gradient_accumulation": 1, "batch_size": 8}
    whole = _Run(tiny_base, tmp_path / "whole", data, **options)
    parts = _Run(tiny_base, tmp_path / "parts", data, **{**options, "gradient_accumulation": 4, "batch_size": 2})
    for run in (whole, parts):
        for module in run.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    whole.train()
    parts.train()
    losses = [[report.loss or 0.0 for report in run.reports] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tiny_base: Path, tmp_path: Path) -> None:
    run = _Run(tiny_base, tmp_path)

    def poison(report: TrainingProgress) -> None:
        if report.step == 3:
            with torch.no_grad():
                next(iter(run.weights().values())).fill_(math.nan)

    run.trainer._report = poison
    with pytest.raises(TrainingDiverged, match=r"loss is nan at step 4 of 10.*learning_rate"):
        run.train()
    assert CheckpointStore(tmp_path).latest() is None


def test_training_stops_early_and_keeps_the_best_adapter(tiny_base: Path, tmp_path: Path) -> None:
    # Training pulls away from what validation asks for.
    data = _data()
    wrong = tuple(replace(example, token_ids=(*example.token_ids[:2], 60, 61, 62, 0)) for example in data.train[:6])
    run = _Run(
        tiny_base,
        tmp_path,
        replace(data, validation=wrong),
        steps=60,
        evaluate_every=2,
        early_stopping_patience=2,
        learning_rate=0.05,
    )
    outcome = run.train()
    looks = {r.step: r.validation_loss for r in run.reports if r.validation_loss is not None}
    best = min(looks, key=lambda step: looks[step] or math.inf)
    assert outcome.stopped_early
    assert outcome.num_steps < 60
    assert outcome.best_step == best
    assert outcome.validation_loss == looks[best]
    checkpoint = CheckpointStore(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.best is not None
    assert _same(run.weights(), dict(checkpoint.best))


def test_only_the_last_two_checkpoints_are_kept(tiny_base: Path, tmp_path: Path) -> None:
    _Run(tiny_base, tmp_path, steps=9, checkpoint_every=2).train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000009"]


def test_half_written_checkpoint_is_ignored(tiny_base: Path, tmp_path: Path) -> None:
    _Run(tiny_base, tmp_path).train()
    torn = tmp_path / ".step-00000099.partial"
    torn.mkdir()
    (torn / "state.json").write_text("{")
    checkpoint = CheckpointStore(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.step == 10

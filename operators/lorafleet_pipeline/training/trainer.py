"""The training loop. Knows neither files of a run nor MLflow: it is given data and reports through a callback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from lorafleet_pipeline.exceptions import TrainingDiverged
from lorafleet_pipeline.spec import TrainingSection
from lorafleet_pipeline.training.checkpoint import Checkpoint, CheckpointStore, random_state, restore_random_state
from lorafleet_pipeline.training.data import Batch, BatchPlan, TokenizedExample, collate
from lorafleet_pipeline.training.early_stopping import EarlyStopping
from lorafleet_pipeline.training.loss import completion_loss
from lorafleet_pipeline.training.progress import Speed, TrainingPhase, TrainingProgress
from lorafleet_pipeline.training.schedule import CosineSchedule

if TYPE_CHECKING:
    from peft import PeftModel

MAX_VALIDATION_EXAMPLES = 64
"""Most examples that a look at the validation loss costs."""


@dataclass(frozen=True)
class TrainerData:
    """Tokenized examples, and the token that fills up rows."""

    train: tuple[TokenizedExample, ...]
    validation: tuple[TokenizedExample, ...]
    pad_id: int


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training went."""

    num_steps: int
    loss: float
    """Of the last step."""
    validation_loss: float | None
    """At the last look, or at the best one where that adapter was taken."""
    best_step: int | None
    """Step of the adapter that was taken, where it is not the last."""
    stopped_early: bool
    num_tokens: int
    seconds: float
    """Time spent in steps and looks, over all resumptions."""


class Trainer:
    """Trains the adapter on a model: `setup`, `train`, `cleanup`."""

    def __init__(
        self,
        model: PeftModel,
        section: TrainingSection,
        data: TrainerData,
        checkpoints: CheckpointStore,
        report: Callable[[TrainingProgress], None],
        device: torch.device,
    ) -> None:
        self._model = model
        self._section = section
        self._data = data
        self._checkpoints = checkpoints
        self._report = report
        self._device = device
        self._schedule = CosineSchedule(section.learning_rate, section.steps, section.warmup_fraction)
        self._plan = BatchPlan(
            lengths=tuple(len(example.token_ids) for example in data.train),
            batch_size=section.batch_size,
            seed=section.seed,
        )
        self._weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._stopping = EarlyStopping(section.early_stopping_patience)
        self._speed = Speed()
        self._best: Mapping[str, torch.Tensor] | None = None
        self._step = 0
        self._loss = math.nan
        self._validation_loss: float | None = None
        self._num_tokens = 0
        self._seconds = 0.0

    def setup(self) -> int:
        """Make the optimizer and go back to the last checkpoint; returns the steps already done."""
        self._optimizer = torch.optim.AdamW(
            list(self._weights.values()), lr=self._schedule.at(1), weight_decay=self._section.weight_decay
        )
        checkpoint = self._checkpoints.latest()
        if checkpoint is not None:
            self._restore(checkpoint)
        self._model.train()
        return self._step

    def train(self) -> TrainingOutcome:
        """Train to the last step, or until validation stops improving.

        Raises:
            TrainingDiverged: the loss or its gradient became non-finite.
        """
        last = self._section.steps
        while self._step < last and not self._stopping.is_due:
            started = time.monotonic()
            step = self._step + 1
            self._loss, num_tokens = self._optimize(step)
            self._speed.record(num_tokens, time.monotonic() - started)
            self._step, self._num_tokens = step, self._num_tokens + num_tokens
            looked = self._look() if self._is_look_due(step) else None
            self._seconds += time.monotonic() - started
            if step % self._section.checkpoint_every == 0 or step == last or self._stopping.is_due:
                self._checkpoints.save(self._checkpoint())
            self._report(self._progress(looked))
        return self._outcome()

    def cleanup(self) -> None:
        """Put the best adapter into the model where that is wanted, and free the optimizer's memory."""
        if self._best is not None:
            self._load_weights(self._best)
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()
        self._model.eval()

    def _optimize(self, step: int) -> tuple[float, int]:
        """One optimizer step over the whole effective batch: its mean loss and its number of tokens."""
        batches = [self._batch(step, part) for part in range(self._section.gradient_accumulation)]
        # Normalised over all parts together: parts with short answers must not weigh more per token.
        num_completion_tokens = max(1, sum(batch.num_completion_tokens for batch in batches))
        total = 0.0
        for batch in batches:
            loss = completion_loss(self._model, batch) / num_completion_tokens
            total += self._finite(loss.item(), "loss", step)
            loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._weights.values(), self._section.max_grad_norm)
        self._finite(norm.item(), "gradient norm", step)
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.at(step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total, sum(batch.num_tokens for batch in batches)

    def _batch(self, step: int, part: int) -> Batch:
        position = (step - 1) * self._section.gradient_accumulation + part
        return self._collate([self._data.train[index] for index in self._plan.batch(position)])

    def _collate(self, examples: list[TokenizedExample]) -> Batch:
        return collate(examples, self._data.pad_id, self._device)

    def _finite(self, value: float, name: str, step: int) -> float:
        if math.isfinite(value):
            return value
        raise TrainingDiverged(
            f"the {name} is {value} at step {step} of {self._section.steps}: lower training.learning_rate "
            f"(now {self._section.learning_rate:g}) or raise training.warmup_fraction (now "
            f"{self._section.warmup_fraction:g})"
        )

    def _is_look_due(self, step: int) -> bool:
        every = self._section.evaluate_every or self._section.checkpoint_every
        return bool(self._data.validation) and (step % every == 0 or step == self._section.steps)

    def _look(self) -> float:
        """The validation loss per completion token, remembered with its adapter where it is the best."""
        loss = validation_loss(self._model, self._data, self._section.batch_size, self._device)
        self._validation_loss = self._finite(loss, "validation loss", self._step)
        if self._stopping.look(self._step, loss) and self._stopping.patience is not None:
            self._best = {name: value.detach().cpu().clone() for name, value in self._weights.items()}
        return loss

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            step=self._step,
            adapter={name: value.detach().cpu() for name, value in self._weights.items()},
            optimizer=self._optimizer.state_dict(),
            random=random_state(),
            progress={
                "stopping": asdict(self._stopping),
                "loss": self._loss,
                "validation_loss": self._validation_loss,
                "num_tokens": self._num_tokens,
                "seconds": self._seconds,
            },
            best=self._best,
        )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._load_weights(checkpoint.adapter)
        self._optimizer.load_state_dict(dict(checkpoint.optimizer))
        restore_random_state(checkpoint.random)
        state = checkpoint.progress
        self._step, self._best = checkpoint.step, checkpoint.best
        self._stopping = EarlyStopping(**{**state["stopping"], "patience": self._section.early_stopping_patience})
        self._loss, self._validation_loss = state["loss"], state["validation_loss"]
        self._num_tokens, self._seconds = state["num_tokens"], state["seconds"]

    @torch.no_grad()
    def _load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        for name, value in self._weights.items():
            value.copy_(weights[name])

    def _progress(self, looked: float | None) -> TrainingProgress:
        return TrainingProgress(
            phase=TrainingPhase.TRAINING,
            step=self._step,
            num_steps=self._section.steps,
            loss=self._loss,
            learning_rate=self._schedule.at(self._step),
            tokens_per_s=self._speed.tokens_per_s,
            eta_s=(self._section.steps - self._step) * self._speed.step_s,
            validation_loss=looked,
        )

    def _outcome(self) -> TrainingOutcome:
        took_best = self._best is not None and self._stopping.best_step != self._step
        return TrainingOutcome(
            num_steps=self._step,
            loss=self._loss,
            validation_loss=self._stopping.best_loss if took_best else self._validation_loss,
            best_step=self._stopping.best_step if took_best else None,
            stopped_early=self._stopping.is_due and self._step < self._section.steps,
            num_tokens=self._num_tokens,
            seconds=self._seconds,
        )


@torch.no_grad()
def validation_loss(model: PeftModel, data: TrainerData, batch_size: int, device: torch.device) -> float:
    """Loss per completion token over the first validation examples; leaves the model in train mode."""
    examples = sorted(data.validation[:MAX_VALIDATION_EXAMPLES], key=lambda example: len(example.token_ids))
    total, num_tokens = 0.0, 0
    model.eval()
    for start in range(0, len(examples), batch_size):
        batch = collate(examples[start : start + batch_size], data.pad_id, device)
        total += completion_loss(model, batch).item()
        num_tokens += batch.num_completion_tokens
    model.train()
    return total / max(1, num_tokens)

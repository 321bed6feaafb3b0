"""The inside of a training process: from the run folder to an adapter and its result."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lorafleet_contract.digest import base_digest
from lorafleet_contract.tags import Tag
from lorafleet_pipeline.base_models import resolve_base_model
from lorafleet_pipeline.datasets.dataset import Dataset, Example
from lorafleet_pipeline.datasets.preparation import read_prepared
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.training.adapter import save_adapter
from lorafleet_pipeline.training.checkpoint import CheckpointStore
from lorafleet_pipeline.training.data import TokenizedSplit, tokenize
from lorafleet_pipeline.training.job import TrainingJob
from lorafleet_pipeline.training.methods import METHODS, TrainableModel
from lorafleet_pipeline.training.progress import TrainingPhase, TrainingProgress
from lorafleet_pipeline.training.result import TrainingResult
from lorafleet_pipeline.training.tracking import Tracking
from lorafleet_pipeline.training.trainer import Trainer, TrainerData, TrainingOutcome
from lorafleet_pipeline.training.worker import ProgressLog, StepFiles

logger = logging.getLogger(__name__)

Report = Callable[[TrainingProgress], None]


def fine_tune(spec: AdapterSpec, run: RunFolder, settings: PlatformSettings) -> TrainingResult:
    """Train, save the adapter and write the result; goes on from the last checkpoint.

    Raises:
        PipelineError: the dataset, the base model, MLflow or the training itself failed.
    """
    dataset = read_prepared(run)
    with _tracking(spec, run, settings) as tracking, _reporter(spec, run, tracking) as report:
        report(TrainingProgress(TrainingPhase.LOADING, 0, spec.training.steps))
        folder = resolve_base_model(spec.base_model)
        facts = {
            Tag.SPEC_DIGEST.value: spec.spec_digest,
            Tag.DATASET_DIGEST.value: dataset.digest,
            Tag.LORA_BASE_MODEL.value: spec.base_model,
            Tag.LORA_BASE_DIGEST.value: base_digest(folder),
        }
        if tracking is not None:
            tracking.log_facts(_params(spec), {**facts, "lorafleet.adapter": spec.name})
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        data, train = _tokenized(spec, dataset, tokenizer)
        trained, outcome = _train(spec, run, folder, data, report)
        report(TrainingProgress(TrainingPhase.SAVING, outcome.num_steps, spec.training.steps))
        digest = save_adapter(trained.model, run.adapter_folder)
    result = TrainingResult(
        adapter_digest=digest,
        spec_digest=spec.spec_digest,
        dataset_digest=dataset.digest,
        base_model=spec.base_model,
        base_digest=facts[Tag.LORA_BASE_DIGEST],
        method=spec.method.type.value,
        trained_on=trained.trained_on,
        num_steps=outcome.num_steps,
        loss=outcome.loss,
        validation_loss=outcome.validation_loss,
        best_step=outcome.best_step,
        stopped_early=outcome.stopped_early,
        num_examples=len(train.examples),
        num_left_out=train.num_left_out,
        num_tokens=outcome.num_tokens,
        seconds=outcome.seconds,
        mlflow_run_id=None if tracking is None else tracking.run_id,
    )
    result.write(run.training_result)
    return result


def _train(
    spec: AdapterSpec, run: RunFolder, folder: Path, data: TrainerData, report: Report
) -> tuple[TrainableModel, TrainingOutcome]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(spec.training.seed)
    trained = METHODS[spec.method.type].build(folder, spec.base_model, spec.method, device)
    trainer = Trainer(trained.model, spec.training, data, CheckpointStore(run.training / "checkpoints"), report, device)
    done = trainer.setup()
    logger.info(
        "%s %s, base in %s on %s with %d threads",
        f"resuming after step {done} of" if done else "training",
        spec.name,
        trained.trained_on,
        device,
        torch.get_num_threads(),
    )
    try:
        outcome = trainer.train()
    finally:
        trainer.cleanup()
    return trained, outcome


def _tokenized(
    spec: AdapterSpec, dataset: Dataset, tokenizer: PreTrainedTokenizerBase
) -> tuple[TrainerData, TokenizedSplit]:
    def split(examples: tuple[Example, ...]) -> TokenizedSplit:
        return tokenize(examples, tokenizer, chat=spec.chat, max_len=spec.training.max_len)

    train, validation = split(dataset.train), split(dataset.validation)
    if train.num_left_out:
        logger.warning(
            "%d of %d training examples are longer than training.max_len %d and are left out",
            train.num_left_out,
            len(dataset.train),
            spec.training.max_len,
        )
    # Padding is masked, so any token will do where a tokenizer has none for it.
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return TrainerData(train=train.examples, validation=validation.examples, pad_id=pad_id), train


@contextmanager
def _tracking(spec: AdapterSpec, run: RunFolder, settings: PlatformSettings) -> Iterator[Tracking | None]:
    if not settings.mlflow_url:
        yield None
        return
    with Tracking(settings.mlflow_url, spec.name, run.run_key, TrainingJob(run).attempt) as tracking:
        yield tracking


@contextmanager
def _reporter(spec: AdapterSpec, run: RunFolder, tracking: Tracking | None) -> Iterator[Report]:
    """Reports to followers, to MLflow, and to a terminal if this process has one."""
    from tqdm import tqdm

    log = ProgressLog(StepFiles(run.training).progress)
    with contextlib.closing(tqdm(total=spec.training.steps, unit="step", disable=not sys.stderr.isatty())) as bar:

        def report(progress: TrainingProgress) -> None:
            log.append(progress.to_json())
            bar.update(progress.step - bar.n)
            bar.set_postfix_str(progress.phase.value if progress.loss is None else f"loss {progress.loss:.4f}")
            if progress.loss is not None:
                logger.info("%s", progress)
            if tracking is not None:
                tracking.log_metrics(_metrics(progress), progress.step)

        yield report


def _metrics(progress: TrainingProgress) -> dict[str, float]:
    values = {
        "train/loss": progress.loss,
        "train/learning_rate": progress.learning_rate,
        "train/tokens_per_s": progress.tokens_per_s,
        "validation/loss": progress.validation_loss,
    }
    return {name: value for name, value in values.items() if value is not None}


def _params(spec: AdapterSpec) -> dict[str, object]:
    method = {f"method.{key}": value for key, value in spec.method.model_dump(mode="json").items()}
    training = {f"training.{key}": value for key, value in spec.training.model_dump(mode="json").items()}
    return {"base_model": spec.base_model, **method, **training}

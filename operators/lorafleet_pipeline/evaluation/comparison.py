"""The inside of an evaluation process: from a trained adapter to manifest, signed gate report and report."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from lorafleet_contract.digest import WEIGHTS_FILE
from lorafleet_contract.manifest import AdapterManifest, read_chat_template
from lorafleet_contract.signature import sign
from lorafleet_pipeline.base_models import resolve_base_model
from lorafleet_pipeline.datasets.dataset import Dataset, Example
from lorafleet_pipeline.datasets.preparation import read_prepared
from lorafleet_pipeline.evaluation.champion import Champion, fetch_champion
from lorafleet_pipeline.evaluation.gate import Check, Scores, Verdict, judge
from lorafleet_pipeline.evaluation.harness import Harness, sample_examples
from lorafleet_pipeline.evaluation.metrics import SCORES
from lorafleet_pipeline.evaluation.progress import Contestant, EvaluationProgress, OnProgress
from lorafleet_pipeline.evaluation.report import EvaluationReport
from lorafleet_pipeline.exceptions import EvaluationError
from lorafleet_pipeline.run_folder import RunFolder
from lorafleet_pipeline.settings import PlatformSettings
from lorafleet_pipeline.spec import AdapterSpec
from lorafleet_pipeline.training.result import TrainingResult
from lorafleet_pipeline.training.tracking import log_final_metrics
from lorafleet_pipeline.training.worker import write_json
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.exceptions import AdapterRefusal

logger = logging.getLogger(__name__)

RECORDS_FILE = "records.jsonl"


@dataclass(frozen=True)
class Answers:
    """What each contestant answered, row by row."""

    examples: tuple[Example, ...]
    texts: dict[Contestant, list[str]]


class Comparison:
    """One evaluation of one run."""

    def __init__(self, spec: AdapterSpec, run: RunFolder, settings: PlatformSettings, on_progress: OnProgress) -> None:
        self._spec = spec
        self._run = run
        self._settings = settings
        self._on_progress = on_progress
        self._training = TrainingResult.read(run.training_result)

    def execute(self) -> EvaluationReport:
        """Compare, judge, sign, and write everything; the report last.

        Raises:
            EvaluationError: the comparison is not possible.
        """
        dataset = read_prepared(self._run)
        self._on_progress(EvaluationProgress(None, 0, 0))
        harness, engine = self._open_engine()
        champion = fetch_champion(
            self._spec.name, engine.base_digest, self._run.evaluation / "champion", self._settings
        )
        champion = self._load_champion(engine, champion)
        loading = self._load_candidate(engine)
        if not all(check.passed for check in loading):
            report = self._report(Verdict(loading), None, champion, dataset)
        else:
            examples = harness.that_fit(sample_examples(dataset.test, *self._sampling()))
            answers = self._answer(harness, engine, examples, champion)
            scores = self._score(answers)
            interval = scores.interval(self._spec.evaluation.seed)
            metric = self._spec.evaluation.metric.value
            verdict = judge(self._spec.gate, scores, interval, metric, champion.note)
            report = self._report(Verdict((*loading, *verdict.checks)), scores, champion, dataset)
        self._write(report)
        return report

    def _open_engine(self) -> tuple[Harness, Engine]:
        folder = resolve_base_model(self._spec.base_model)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        engine = Engine(EngineConfig(model=folder, device=device))
        if engine.base_digest != self._training.base_digest:
            raise EvaluationError(
                f"base model {self._spec.base_model} has changed since the adapter was trained on it: train again"
            )
        tokenizer = AutoTokenizer.from_pretrained(engine.tokenizer_folder, local_files_only=True)
        return Harness(engine, tokenizer, self._spec.evaluation, chat=self._spec.chat), engine

    def _load_candidate(self, engine: Engine) -> tuple[Check, ...]:
        wrong = tensors_not_finite(self._run.adapter_folder / WEIGHTS_FILE)
        detail = f"not finite: {', '.join(wrong[:3])}" if wrong else "every weight is finite"
        finite = Check("finite_weights", not wrong, detail)
        if wrong:
            return (finite,)
        try:
            engine.load_adapter(self._training.adapter_digest, self._run.adapter_folder)
        except AdapterRefusal as error:
            return finite, Check("loads", False, str(error))
        return finite, Check("loads", True, "the engine took the adapter")

    def _load_champion(self, engine: Engine, champion: Champion) -> Champion:
        """The champion in the engine; one that does not load must not stand in the way of every successor."""
        if champion.digest is None or champion.folder is None or champion.digest == self._training.adapter_digest:
            return champion
        try:
            engine.load_adapter(champion.digest, champion.folder)
        except AdapterRefusal as error:
            return Champion(f"champion {champion.note} cannot be compared: {error}")
        return champion

    def _sampling(self) -> tuple[int | None, int]:
        return self._spec.evaluation.limit, self._spec.evaluation.seed

    def _answer(self, harness: Harness, engine: Engine, examples: tuple[Example, ...], champion: Champion) -> Answers:
        adapters = {Contestant.BASE: None, Contestant.CANDIDATE: self._training.adapter_digest}
        if champion.digest is not None:
            adapters[Contestant.CHAMPION] = champion.digest
        texts: dict[Contestant, list[str]] = {}
        num_prompts = len({example.prompt for example in examples})
        for contestant, digest in adapters.items():

            def answered(done: int, who: Contestant = contestant) -> None:
                self._on_progress(EvaluationProgress(who, done, num_prompts))

            answered(0)
            texts[contestant] = harness.answer(examples, digest, answered)
        return Answers(examples, texts)

    def _score(self, answers: Answers) -> Scores:
        """Score every answer, and keep each beside its reference in the run folder."""
        score = SCORES[self._spec.evaluation.metric]
        stop = self._spec.evaluation.stop
        references = [reference_of(example.completion, stop) for example in answers.examples]
        scores: dict[Contestant, list[float]] = {}
        for contestant, texts in answers.texts.items():
            try:
                pairs = zip(texts, references, strict=True)
                scores[contestant] = [score(text.strip(), reference) for text, reference in pairs]
            except ValueError as error:
                raise EvaluationError(f"evaluation.metric does not fit the test split: {error}") from error
        with (self._run.evaluation / RECORDS_FILE).open("w", encoding="utf-8") as file:
            for index, example in enumerate(answers.examples):
                record: dict[str, Any] = {"row": example.row, "prompt": example.prompt, "reference": references[index]}
                for contestant, texts in answers.texts.items():
                    record[contestant.value] = {"answer": texts[index], "score": scores[contestant][index]}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return Scores(scores[Contestant.BASE], scores[Contestant.CANDIDATE], scores.get(Contestant.CHAMPION))

    def _report(
        self, verdict: Verdict, scores: Scores | None, champion: Champion, dataset: Dataset
    ) -> EvaluationReport:
        manifest = build_manifest(self._spec, self._training, dataset, self._run.adapter_folder)
        write_json(self._run.manifest, manifest.to_json())
        return EvaluationReport(
            adapter=self._spec.name,
            digest=manifest.digest,
            manifest_digest=manifest.manifest_digest,
            status=verdict.status,
            reason=verdict.reason,
            metric=self._spec.evaluation.metric.value,
            rows=0 if scores is None else len(scores.candidate),
            base=None if scores is None else fmean(scores.base),
            candidate=None if scores is None else fmean(scores.candidate),
            champion=None if scores is None else _mean(scores.champion),
            lift=None if scores is None else scores.lift,
            interval=None if scores is None else scores.interval(self._spec.evaluation.seed),
            checks=verdict.checks,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            champion_version=champion.version,
        )

    def _write(self, report: EvaluationReport) -> None:
        write_json(self._run.gate_report, sign(report.gate_document(), self._settings.require_gate_key()))
        run_id = self._training.mlflow_run_id
        if run_id is not None and self._settings.mlflow_url:
            log_final_metrics(self._settings.mlflow_url, run_id, report.metrics())
        write_json(self._run.evaluation_report, report.to_json())
        logger.info("gate %s %s", report.status.value, report.reason)


def build_manifest(spec: AdapterSpec, training: TrainingResult, dataset: Dataset, folder: Path) -> AdapterManifest:
    """The manifest of the version that this adapter will become."""
    return AdapterManifest(
        name=spec.name,
        digest=training.adapter_digest,
        base_model=spec.base_model,
        base_digest=training.base_digest,
        method=training.method,
        rank=spec.method.r,
        alpha=float(spec.method.alpha),
        target_modules=tuple(sorted(spec.method.target_modules)),
        trained_on=training.trained_on,
        dataset_digest=training.dataset_digest,
        spec_digest=training.spec_digest,
        prompt=spec.prompt_block(dataset.prompt_examples()),
        metric=spec.evaluation.metric.value,
        owner=spec.owner,
        chat_template=read_chat_template(folder),
    )


def reference_of(completion: str, stop: Sequence[str]) -> str:
    """The wanted answer as a caller would see it: without what stands at and after a stop string."""
    text = completion.strip()
    cuts = [at for at in (text.find(marker) for marker in stop if marker) if at >= 0]
    return text[: min(cuts)].strip() if cuts else text


def tensors_not_finite(path: Path) -> list[str]:
    """Names of tensors that hold a value which is not finite."""
    with safe_open(path, framework="pt") as file:
        return [name for name in file.keys() if not bool(torch.isfinite(file.get_tensor(name)).all())]  # noqa: SIM118


def _mean(values: Sequence[float] | None) -> float | None:
    if values is None:
        return None
    mean = fmean(values)
    assert math.isfinite(mean), "scores are finite"
    return mean

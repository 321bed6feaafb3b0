"""AdapterSpec: everything a user says about one adapter, in one YAML file.

Parsed by Airflow at every look at the DAG folder, so nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from lorafleet_contract.digest import document_digest
from lorafleet_contract.exceptions import InvalidName, InvalidTemplate
from lorafleet_contract.names import check_adapter_name
from lorafleet_contract.prompt import PromptBlock, template_variables
from lorafleet_pipeline.exceptions import InvalidSpec

ALL_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_SEVERITIES = ("critical", "warning", "info")


def _refuse_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


# YAML takes 3e-4 for text, so text that is a number is let through; that true is 1 is Python's view alone.
Number = Annotated[float, BeforeValidator(_refuse_switch)]
Whole = Annotated[int, Field(strict=True)]
PositiveInt = Annotated[Whole, Field(ge=1)]
Seed = Annotated[Whole, Field(ge=0, lt=1 << 63)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]


class Quantization(StrEnum):
    """Form of the frozen base in training."""

    NF4 = "nf4"
    NONE = "none"


class Method(StrEnum):
    """Ways to fine-tune."""

    QLORA = "qlora"
    LORA = "lora"


class Metric(StrEnum):
    """How an answer is judged; every metric lies in 0 to 1, more is better."""

    ROUGE_L = "rougeL"
    ACCURACY = "accuracy"
    EXACT_MATCH = "exact_match"
    ENTITY_F1 = "entity_f1"
    LAST_NUMBER = "last_number"


class PromotionPolicy(StrEnum):
    """Who moves the champion alias once a version is registered."""

    AUTO = "auto"
    MANUAL = "manual"
    APPROVAL = "approval"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetSection(_Section):
    """Where the rows are: a local path, `s3://...` or `hf://...`; jsonl, csv or parquet."""

    train: Text
    validation: Text | None = None
    test: Text | None = None
    validation_fraction: Fraction = 0.05
    """Share of the training rows taken where no validation address is given, without leakage."""
    test_fraction: Fraction = 0.1
    """Likewise for the test split."""
    limit: PositiveInt | None = None
    """Most training rows used."""
    seed: Seed = 0
    max_leakage: Fraction = 0.01
    """Largest share of validation or test rows that may recur in train; such train rows are left out. More is refused.

    A few recur in many real datasets; where many do, the evaluation would measure memory.
    """


class MethodSection(_Section):
    """The fine-tuning method."""

    type: Method = Method.QLORA
    r: Annotated[Whole, Field(ge=1, le=256)] = 8
    alpha: Annotated[Number, Field(gt=0)] = 16
    dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    target_modules: Annotated[tuple[Text, ...], Field(min_length=1)] = ALL_LINEARS
    quantization: Quantization | None = None
    use_rslora: StrictBool = False

    @property
    def base_form(self) -> Quantization:
        """Form of the base: NF4 for QLoRA unless the spec says otherwise."""
        if self.quantization is not None:
            return self.quantization
        return Quantization.NF4 if self.type is Method.QLORA else Quantization.NONE


class TrainingSection(_Section):
    """How long and how fast."""

    steps: PositiveInt = 100
    batch_size: PositiveInt = 8
    gradient_accumulation: PositiveInt = 1
    learning_rate: Annotated[Number, Field(gt=0, le=1)] = 2e-4
    warmup_fraction: Fraction = 0.03
    max_grad_norm: Annotated[Number, Field(gt=0)] = 1.0
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    max_len: Annotated[Whole, Field(ge=16)] = 512
    """Longest example in tokens, prompt and completion together; longer ones are left out and counted."""
    checkpoint_every: PositiveInt = 20
    evaluate_every: PositiveInt | None = None
    """Steps between looks at the validation loss; None looks at checkpoints only."""
    early_stopping_patience: PositiveInt | None = None
    """Looks without improvement after which training stops; None never stops early."""
    seed: Seed = 0


class EvaluationSection(_Section):
    """How base, candidate and champion are compared on the test split."""

    metric: Metric
    max_new_tokens: Annotated[Whole, Field(ge=1, le=4096)] = 64
    limit: PositiveInt | None = 200
    """Most test rows judged; None judges all."""
    stop: tuple[Text, ...] = ()
    seed: Seed = 0


class GateSection(_Section):
    """What a candidate must show before it may serve."""

    min_lift: Annotated[Number, Field(ge=-1, le=1)] = 0.0
    """Least gain over the base, in points of the metric (0 to 1)."""
    max_regression: Fraction = 0.0
    """Greatest loss against the champion that is tolerated."""


class PromotionSection(_Section):
    """What happens to a version that passed its gate."""

    policy: PromotionPolicy = PromotionPolicy.MANUAL
    canary: Fraction | None = None


class AdapterSpec(_Section):
    """One adapter: data, prompt, method, gate, promotion and schedule."""

    name: str
    base_model: Text
    dataset: DatasetSection
    prompt: str
    """Jinja template over the row's columns; it ends where the model goes on."""
    completion: str
    """Jinja template of the wanted answer."""
    chat: StrictBool = False
    """Whether the prompt is the user's turn of the base's chat template."""
    category: str = "other"
    expectations: tuple[Mapping[str, Any], ...] = ()
    """More Great Expectations, each `{type: ..., severity: ..., ...arguments}`."""
    method: MethodSection = MethodSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection
    gate: GateSection = GateSection()
    promotion: PromotionSection = PromotionSection()
    schedule: Text | None = None
    """A cron expression, `dataset` for the dataset's asset, or nothing for runs by hand."""
    owner: str = "lorafleet"
    tags: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _name_is_servable(cls, name: str) -> str:
        try:
            return check_adapter_name(name)
        except InvalidName as error:
            raise ValueError(str(error)) from error

    @field_validator("expectations")
    @classmethod
    def _expectations_are_named(cls, expectations: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        # Whether the type exists and takes these arguments is seen in validation: only there the library is at hand.
        for index, expectation in enumerate(expectations):
            if not isinstance(expectation.get("type"), str):
                raise ValueError(f"{index}: has no type: write for instance type: expect_column_values_to_be_unique")
            if expectation.get("severity", "critical") not in _SEVERITIES:
                raise ValueError(f"{index}.severity: {expectation['severity']!r} is none of {', '.join(_SEVERITIES)}")
            try:
                json.dumps(dict(expectation), allow_nan=False, default=str)
            except ValueError as error:
                raise ValueError(f"{index}: holds a number that is not finite: leave the bound out") from error
        return expectations

    @model_validator(mode="after")
    def _templates_parse(self) -> AdapterSpec:
        for key, template in (("prompt", self.prompt), ("completion", self.completion)):
            try:
                if not template_variables(template):
                    raise ValueError(f"{key}: the template names no column; write for instance {{{{ text }}}}")
            except InvalidTemplate as error:
                raise ValueError(f"{key}: {error}") from error
        return self

    @property
    def spec_digest(self) -> str:
        """Digest of what decides the adapter's weights and verdict: owner, schedule and policy do not."""
        left_out = {"owner", "tags", "schedule", "promotion", "category"}
        return document_digest(self.model_dump(mode="json", exclude=left_out))

    def prompt_block(self, examples: tuple[Mapping[str, Any], ...] = ()) -> PromptBlock:
        """The prompt block that travels with a version."""
        return PromptBlock(
            template=self.prompt,
            variables=template_variables(self.prompt),
            stop=self.evaluation.stop,
            max_new_tokens=self.evaluation.max_new_tokens,
            chat=self.chat,
            category=self.category,
            examples=examples,
        )

    def to_yaml(self) -> str:
        """The spec as YAML, with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_spec(path: Path) -> AdapterSpec:
    """Read one spec.

    Raises:
        InvalidSpec: the file is missing, is no YAML, or breaks the schema; one line names the keys.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSpec(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path}: is no YAML ({' '.join(str(error).split())[:200]})") from error
    return parse_spec(data, source=str(path))


def parse_spec(data: object, source: str) -> AdapterSpec:
    """Check a parsed document.

    Raises:
        InvalidSpec: it breaks the schema; one line names the keys.
    """
    if not isinstance(data, Mapping):
        raise InvalidSpec(f"{source}: holds {type(data).__name__}, a mapping of keys is needed")
    try:
        return AdapterSpec.model_validate(dict(data))
    except ValidationError as error:
        raise InvalidSpec(f"{source}: {_one_line(error)}") from error


def _one_line(error: ValidationError) -> str:
    findings = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "spec"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key: remove it, or correct its spelling"
        elif item["type"] == "missing":
            message = "is missing: add it"
        findings.append(f"{key}: {message}")
    return "; ".join(findings)

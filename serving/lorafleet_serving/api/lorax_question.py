"""From the fields of the LoRAX dialect to questions, by its rules of what goes together."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, replace

from lorafleet_serving.adapters.merge_recipe import MajoritySign, MergeMember, MergeRecipe, MergeStrategy
from lorafleet_serving.adapters.merged import MergedAdapter
from lorafleet_serving.api.lorax_schemas import (
    AdapterParameters,
    EmbedRequest,
    GenerateParameters,
    GenerateRequest,
    MergedAdaptersField,
    ResponseFormat,
)
from lorafleet_serving.api.question import Question
from lorafleet_serving.caller import Caller
from lorafleet_serving.engine.constraint import Constraint, ConstraintKind
from lorafleet_serving.engine.request import Pooling, SamplingParams
from lorafleet_serving.exceptions import InvalidRequest
from lorafleet_serving.pod import Pod

_BASE_MODEL = "__base_model__"
_SEED_BITS = 53
"""Of the seeds that are drawn for callers who sent none: what every JSON parser keeps exactly."""


@dataclass(frozen=True)
class QuestionReader:
    """Reads the bodies of one request; `caller` is who sends it."""

    pod: Pod
    caller: Caller

    def generate(self, body: GenerateRequest, *, with_logprobs: bool, streams: bool = False) -> list[Question]:
        """Questions to generate for, one for each answer of `best_of`.

        Raises:
            InvalidRequest: fields do not go together, or one is out of range.
            ServingError: an adapter to be merged cannot be asked for.
        """
        parameters = body.parameters or GenerateParameters()
        self._check(body, parameters, streams)
        sampling = _sampling(parameters, with_logprobs=with_logprobs)
        takes_text = parameters.variables is None and not parameters.apply_chat_template
        first = Question(
            model=self._model(parameters),
            caller=self.caller,
            sampling=sampling,
            max_tokens=parameters.max_new_tokens,
            max_tokens_field="max_new_tokens",
            prompt_field="inputs" if parameters.variables is None else "variables",
            stop=None if parameters.stop is None else tuple(item for item in parameters.stop if item),
            text=body.inputs if takes_text else None,
            messages=[{"role": "user", "content": body.inputs}] if parameters.apply_chat_template else None,
            variables=parameters.variables,
            truncate=parameters.truncate,
            prompt_logprobs_field="decoder_input_details",
            merged=self._merged(parameters),
        )
        others = [_other(first) for _ in range((parameters.best_of or 1) - 1)]
        return [first, *others]

    def embed(self, body: EmbedRequest) -> Question:
        """A question for a text's vector.

        Raises:
            InvalidRequest: fields do not go together, or one is out of range.
            ServingError: an adapter to be merged cannot be asked for.
        """
        pooling = body.parameters.pooling if body.parameters is not None else None
        parameters = body.parameters or AdapterParameters()
        return Question(
            model=self._model(parameters),
            caller=self.caller,
            sampling=SamplingParams(),
            max_tokens=None,
            max_tokens_field="max_new_tokens",
            prompt_field="inputs",
            text=body.inputs,
            merged=self._merged(parameters),
            pooling=pooling or Pooling.LAST,
        )

    def _check(self, body: GenerateRequest, parameters: GenerateParameters, streams: bool) -> None:
        if not body.inputs and parameters.variables is None:
            raise InvalidRequest("inputs is empty: send a prompt, or parameters.variables", field="inputs")
        if parameters.variables is not None and parameters.apply_chat_template:
            raise InvalidRequest(
                "apply_chat_template is for inputs: variables fill the adapter's own template",
                field="apply_chat_template",
            )
        if parameters.watermark:
            raise InvalidRequest("watermark is true, and watermarking is not served: leave it out", field="watermark")
        if parameters.decoder_input_details and streams:
            raise InvalidRequest("decoder_input_details is not given in a stream", field="decoder_input_details")
        if parameters.return_full_text:  # It is answered with, even where it is no part of the prompt.
            self.pod.tokenizer.check_text(body.inputs, self.pod.max_model_len, "inputs")
        longest = self.pod.max_model_len - 1
        if parameters.truncate is not None and parameters.truncate > longest:
            raise InvalidRequest(f"truncate is {parameters.truncate}, it must be 1 to {longest}", field="truncate")
        if (parameters.best_of or 1) > 1:
            self._check_best_of(parameters, streams)

    def _check_best_of(self, parameters: GenerateParameters, streams: bool) -> None:
        count = parameters.best_of
        if streams:
            raise InvalidRequest(f"best_of is {count}: a stream takes one answer", field="best_of")
        if not _samples(parameters):
            raise InvalidRequest(f"best_of is {count}, which needs sampling: set do_sample", field="best_of")
        if parameters.seed is not None:
            raise InvalidRequest(f"best_of is {count} and seed is set: leave one of them out", field="best_of")

    def _model(self, parameters: AdapterParameters) -> str:
        model = parameters.adapter_id or ""
        if model and parameters.merged_adapters is not None:
            raise InvalidRequest("send either adapter_id or merged_adapters, not both", field="adapter_id")
        return "" if model in (_BASE_MODEL, self.pod.config.base_id) else model

    def _merged(self, parameters: AdapterParameters) -> MergedAdapter | None:
        field = parameters.merged_adapters
        if field is None:
            return None
        if len(field.ids) != len(field.weights):
            raise _wrong(f"ids holds {len(field.ids)} adapters and weights {len(field.weights)} numbers")
        # Each mixture of versions would be merged anew.
        versions = [self.pod.resolve(adapter_id, self.caller, joins_canary=False) for adapter_id in field.ids]
        members = [version for version in versions if version is not None]
        if len(members) < len(versions):
            raise _wrong("ids names the base model, which is part of every answer: name adapters alone")
        weighted = zip(members, field.weights, strict=True)
        recipe = _recipe(field, tuple(MergeMember(member.digest, weight) for member, weight in weighted))
        return MergedAdapter(recipe, tuple(members), label="+".join(member.label for member in members))


def _recipe(field: MergedAdaptersField, members: tuple[MergeMember, ...]) -> MergeRecipe:
    """Settings that a strategy does not read are left at their defaults, so that they make no second adapter."""
    strategy = field.merge_strategy or MergeStrategy.LINEAR
    if strategy is MergeStrategy.LINEAR:
        return MergeRecipe(members)
    if not field.density:
        raise _wrong(f"density is {field.density}, merge_strategy {strategy} needs one above 0 and at most 1")
    elects = strategy in (MergeStrategy.TIES, MergeStrategy.DARE_TIES)
    draws = strategy in (MergeStrategy.DARE_LINEAR, MergeStrategy.DARE_TIES)
    return MergeRecipe(
        members,
        strategy,
        field.density,
        (field.majority_sign_method if elects else None) or MajoritySign.TOTAL,
        (field.seed if draws else None) or 0,
    )


def _wrong(told: str) -> InvalidRequest:
    return InvalidRequest(f"merged_adapters: {told}", field="merged_adapters")


def _samples(parameters: GenerateParameters) -> bool:
    """Any setting that only makes sense with sampling turns it on, as in LoRAX."""
    filters = (parameters.top_k, parameters.top_p, parameters.typical_p)
    warps = parameters.temperature not in (None, 1.0) or any(value is not None for value in filters)
    return bool(parameters.do_sample) or warps


def _sampling(parameters: GenerateParameters, *, with_logprobs: bool) -> SamplingParams:
    temperature, samples = parameters.temperature, _samples(parameters)
    return SamplingParams(
        temperature=(1.0 if temperature is None else temperature) if samples else 0.0,
        top_k=parameters.top_k,
        top_p=parameters.top_p,
        typical_p=parameters.typical_p,
        repetition_penalty=1.0 if parameters.repetition_penalty is None else parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty or 0.0,
        presence_penalty=parameters.presence_penalty or 0.0,
        # Drawn here, so that the answer can name it.
        seed=secrets.randbits(_SEED_BITS) if samples and parameters.seed is None else parameters.seed,
        ignore_eos=bool(parameters.ignore_eos_token),
        num_logprobs=parameters.return_k_alternatives or (0 if with_logprobs else None),
        num_prompt_logprobs=0 if parameters.decoder_input_details else None,
        constraint=None if parameters.response_format is None else _constraint(parameters.response_format),
    )


def _constraint(wanted: ResponseFormat) -> Constraint | None:
    field = "response_format"
    if wanted.json_schema is not None and wanted.type not in ("json_object", "json_schema"):
        raise InvalidRequest(f"{field}: schema is for json_object, type is {wanted.type}", field=field)
    if (wanted.regex is not None) != (wanted.type == "regex"):
        raise InvalidRequest(
            f"{field}: regex goes with type regex and that with it, type is {wanted.type}", field=field
        )
    if wanted.type == "text":
        return None
    if wanted.regex is not None:
        return Constraint(ConstraintKind.REGEX, wanted.regex, field)
    schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema), field)


def _other(first: Question) -> Question:
    """One more answer to the same prompt, which need not be scored again."""
    sampling = replace(first.sampling, seed=secrets.randbits(_SEED_BITS), num_prompt_logprobs=None)
    return replace(first, sampling=sampling, is_repeated=True)

"""What weights in fewer bits cost in quality: perplexity on the test rows of e2e_nlg."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.engine import Engine
from lorafleet_serving.engine.request import GenerationRequest, SamplingParams
from lorafleet_serving.kernels.weight_format import WeightFormat

_NUM_ROWS = 200
_FILE = Path("e2e_nlg", "test.jsonl")


def measure_perplexity(model: Path, report: Callable[[str], None]) -> dict[str, float]:
    """Perplexity of the base model by the form of its weights, where the data is at hand."""
    folder = os.environ.get("LORAFLEET_TASK_DATA")
    if not folder:
        report("LORAFLEET_TASK_DATA is not set: no perplexity is measured")
        return {}
    lines = (Path(folder) / _FILE).read_text().splitlines()
    # Spread over the file, in which rows of one restaurant stand together.
    rows = [json.loads(line) for line in lines[:: max(1, len(lines) // _NUM_ROWS)][:_NUM_ROWS]]
    texts = [f"{row['meaning_representation']}\n{row['text']}" for row in rows]
    results: dict[str, float] = {}
    for weights in WeightFormat:
        results[f"perplexity.{weights}"] = _perplexity(model, weights, texts)
        report(f"perplexity with weights as {weights}: {results[f'perplexity.{weights}']:.3f}")
    return results


def _perplexity(model: Path, weights: WeightFormat, texts: list[str]) -> float:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    engine = Engine(EngineConfig(model, weights=weights, prefix_caching=False))
    sampling = SamplingParams(max_new_tokens=1, num_prompt_logprobs=0)
    for number, text in enumerate(texts):
        engine.add_request(GenerationRequest(str(number), tuple(tokenizer(text).input_ids), sampling))
    logprobs: list[float] = []
    while engine.has_unfinished():
        for output in engine.step():
            logprobs += [token.logprob for token in output.prompt if token.logprob is not None]
    return math.exp(-sum(logprobs) / len(logprobs))

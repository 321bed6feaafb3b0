"""Decoding of one batch through vLLM. Runs in vLLM's own environment: `vllm_decoding.py JOB ANSWER`, two JSON files.

It has a folder of its own, since what lies beside a script is imported before what is installed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

_MAX_MODEL_LEN = 512


def main(job: dict[str, Any]) -> dict[str, float]:
    """Tokens per second of the job's batch."""
    adapters = [LoRARequest(name, number, path) for number, (name, path) in enumerate(job["adapters"].items(), start=1)]
    lora = {"enable_lora": True, "max_loras": len(adapters), "max_lora_rank": job["rank"]} if adapters else {}
    # Its prefix cache would spare it the prompts, which all the others read.
    options = {"dtype": "bfloat16", "max_model_len": _MAX_MODEL_LEN, "enable_prefix_caching": False}
    engine = LLM(model=job["model"], max_num_seqs=job["num_seqs"], **options, **lora).llm_engine
    _decode(engine, job, adapters, "warm")  # Compiles.
    return {"tokens_per_s": _decode(engine, job, adapters, "timed")}


def _decode(engine: Any, job: dict[str, Any], adapters: list[Any], label: str) -> float:
    """Tokens per second from when every sequence has its first token."""
    num_tokens, num_seqs = job["num_tokens"], job["num_seqs"]
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, min_tokens=num_tokens, ignore_eos=True)
    for number in range(num_seqs):
        adapter = adapters[number % len(adapters)] if adapters else None
        engine.add_request(f"{label}-{number}", {"prompt_token_ids": job["prompt"]}, sampling, lora_request=adapter)
    lengths: dict[str, int] = {}
    start, num_before = 0.0, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            lengths[output.request_id] = len(output.outputs[0].token_ids)
        if not num_before and len(lengths) == num_seqs and min(lengths.values()) > 0:
            start, num_before = time.perf_counter(), sum(lengths.values())
    return (sum(lengths.values()) - num_before) / (time.perf_counter() - start)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))

"""The engine: continuous batching of many adapters over one base model.

Works in tokens and digests. Knows nothing of text, names, registries and processes. Not
thread-safe: one thread calls it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence as Rows
from functools import partial
from itertools import count
from pathlib import Path

import torch

from lorafleet_contract.digest import base_digest
from lorafleet_serving.engine.adapter_pool import AdapterPool
from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.constraint_queue import ConstraintQueue
from lorafleet_serving.engine.deadlines import Deadlines
from lorafleet_serving.engine.device import resolve_device, resolve_dtype
from lorafleet_serving.engine.grammar_compiler import GrammarCompiler, read_tokenizer
from lorafleet_serving.engine.kv_cache import KvCache
from lorafleet_serving.engine.messages import EngineStats, PromptPart
from lorafleet_serving.engine.model_runner import ModelRunner
from lorafleet_serving.engine.offline import answer_batch
from lorafleet_serving.engine.outputs import (
    expiry,
    failure,
    finish_reason,
    invalid,
    prompt_output,
    prompt_part,
    reads_finite,
    token_output,
)
from lorafleet_serving.engine.prefill_pace import PrefillPace
from lorafleet_serving.engine.prompt_lookup import PromptLookup
from lorafleet_serving.engine.rehearsal import rehearse
from lorafleet_serving.engine.request import FinishReason, GenerationRequest, TokenOutput
from lorafleet_serving.engine.request_check import RequestCheck
from lorafleet_serving.engine.sampler import Sample, Sampler
from lorafleet_serving.engine.scheduler import Scheduler
from lorafleet_serving.engine.sequence import Sequence
from lorafleet_serving.exceptions import InvalidRequest
from lorafleet_serving.models.eos import read_eos_token_ids
from lorafleet_serving.models.registry import load_model

_MOST_GUESSING_ROWS = 32
"""Rows of a step up to which guesses are computed: a few rows cost little beside reading the weights, many do not."""


class Engine:
    """One base model, its adapters, and the requests in the batch."""

    def __init__(self, config: EngineConfig) -> None:
        """Load the base model.

        Raises:
            InvalidSetting: a setting does not fit the model or the machine.
            UnsupportedModel: the base model is not served.
        """
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        device = resolve_device(config.device)
        dtype = resolve_dtype(config.dtype, device)
        model = load_model(config.model, dtype, device, weights=config.weights)
        kv_cache = KvCache(model.kv_shape, config, dtype, device, model.max_positions)
        self.config = config
        self.tokenizer_folder = config.model
        self.base_digest = base_digest(config.model)
        self.max_model_len = kv_cache.longest_sequence(config.max_model_len)
        self.hidden_size = model.hidden_size
        self.item_bytes = dtype.itemsize
        self._request_check = RequestCheck(model.vocab_size, self.max_model_len)
        self._eos_token_ids = read_eos_token_ids(config.model)
        host_bytes, device_bytes = config.adapter_host_bytes, config.adapter_device_bytes
        self.adapters = AdapterPool(model, dtype, device, host_bytes=host_bytes, device_bytes=device_bytes)
        """Those in memory; filled by `load_adapter`, or by a `LoadQueue` beside the steps."""
        self._blocks = BlockManager(kv_cache.num_blocks, kv_cache.block_size, prefix_caching=config.prefix_caching)
        self._pace = PrefillPace(config.max_step_stretch, config.max_batched_tokens)
        self._scheduler = _scheduler(config, self._blocks, self.adapters, self._pace)
        self._runner = ModelRunner(model, kv_cache, device)
        self._num_sites = len(model.linears)
        self._compiler = GrammarCompiler(
            partial(read_tokenizer, config.model), end_token_ids=self._eos_token_ids, vocab_size=model.vocab_size
        )
        self._constraints = ConstraintQueue(self._compiler)
        self._sequences: dict[str, Sequence] = {}
        self._deadlines = Deadlines()
        self._ended: list[TokenOutput] = []
        """Ends that happened outside a step; the next step reports them."""
        self._arrivals = count()
        self._num_steps = 0

    def rehearse(self) -> None:
        """Compute a few steps of nobody's, so that operators which compile at their first call have done so.

        Loads too what the first constraint needs, beside which other answers would stand still. To be called before
        the first request.
        """
        rehearse(self._runner, self._num_sites, self.max_model_len, self.config.block_size)
        self._compiler.prepare()

    def step(self) -> list[TokenOutput]:
        """Compute one batch; returns a new token, an end, or both, for each request that got one."""
        for sequence in self._deadlines.expired():
            self._end(sequence)
            self._ended.append(expiry(sequence))
        self._begin_compiled()
        chunks = self._schedule()
        outputs, self._ended = self._ended, []
        if chunks:
            started = time.perf_counter()
            logits = self._runner.run(chunks, self.adapters.weights)
            outputs += self._postprocess(chunks, None if logits is None else self._sampler(logits))
            self._num_steps += 1
            num_decodes = self._scheduler.num_decoding
            num_tokens = sum(chunk.num_tokens for chunk in chunks)
            self._pace.observe(num_decodes, num_tokens - num_decodes, time.perf_counter() - started)
        elif not outputs:
            self._constraints.sleep()
        return outputs

    def prompt_parts(self) -> list[PromptPart]:
        """What was read of prompts since the last call: what nobody takes here comes with their first outputs."""
        parts = map(prompt_part, self._scheduler.running)
        return [part for part in parts if part is not None]

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it cannot be computed by this model, or its adapter is not loaded.
        """
        self._check(request)
        sequence = Sequence(request, next(self._arrivals))
        if self.config.speculative_tokens and request.generates:
            sequence.lookup = PromptLookup(self.config.speculative_tokens)
        if request.sampling.constraint is None:
            self._scheduler.add(sequence)
        else:
            self._constraints.add(sequence)
        if request.adapter is not None:
            self.adapters.enter(request.adapter)
        self._sequences[request.request_id] = sequence
        self._deadlines.add(sequence)

    def abort(self, request_id: str) -> None:
        """End a request; the next step reports it. Unknown ids are ignored, since the end may have crossed it."""
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence)
            self._ended.append(TokenOutput(request_id, None, FinishReason.ABORTED))

    def has_unfinished(self) -> bool:
        """Whether a step has something to do or to report."""
        return bool(self._sequences or self._ended)

    def load_adapter(self, digest: str, folder: Path) -> int:
        """Read an adapter into host memory, so that requests may name it; returns its size in bytes.

        Raises:
            AdapterRefusal: its contents are wrong or not served, or it is larger than a tier.
            NoRoom: other adapters fill the host tier.
        """
        return self.adapters.load(digest, folder)

    def unload_adapter(self, digest: str) -> bool:
        """Drop an adapter; False if requests still use it, then it leaves `stats().host_adapters` with the last."""
        return self.adapters.unload(digest)

    def generate(
        self, requests: Rows[GenerationRequest], on_finished: Callable[[str], None] | None = None
    ) -> dict[str, list[int]]:
        """Answer a batch and return when all of it is done.

        Args:
            requests: the batch; nothing else may be in the engine.
            on_finished: called with the id of each request that has ended.

        Returns:
            Answer tokens without the end token, by request id.

        Raises:
            InvalidRequest: a request cannot be computed; none was.
            GenerationFailed: a request ended with an error.
        """
        return answer_batch(self, requests, on_finished)

    def stats(self) -> EngineStats:
        """State after the last step."""
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_free_blocks=self._blocks.num_free,
            num_kv_blocks=self._blocks.num_blocks,
            device_adapters=self.adapters.device_adapters,
            host_adapters=self.adapters.host_adapters,
            num_steps=self._num_steps,
            num_preemptions=self._scheduler.num_preemptions,
            num_adapter_pauses=self._scheduler.num_pauses,
            device_bytes=self.adapters.device_bytes,
            device_counts=self.adapters.device_counts,
        )

    def check_integrity(self) -> None:
        """Check every account of the engine; for tests and for idle times."""
        self._scheduler.check_integrity()
        self.adapters.check_integrity()
        live = {*self._scheduler.waiting, *self._scheduler.running}
        known = {sequence for sequence in self._sequences.values() if sequence not in self._constraints}
        assert live == known, "scheduler and engine do not know the same sequences"

    def _begin_compiled(self) -> None:
        """Queue the sequences whose constraint was compiled meanwhile."""
        for sequence, error in self._constraints.take_ready():
            if error is None:
                self._scheduler.add(sequence)
            else:
                self._ended.append(invalid(sequence, str(error), error.field))
                self._drop(sequence)

    def _schedule(self) -> list[Chunk]:
        chunks = self._scheduler.schedule()
        assert chunks or not self._scheduler.waiting, "nothing runs, and yet nothing can be admitted"
        # The rows of one adapter lie side by side; the base model's come first.
        return sorted(chunks, key=lambda chunk: chunk.sequence.adapter or "")

    def _sampler(self, logits: torch.Tensor) -> Sampler:
        return Sampler(logits, self._runner.likeliest(logits), self._eos_token_ids)

    def _postprocess(self, chunks: Rows[Chunk], sampler: Sampler | None) -> list[TokenOutput]:
        outputs: list[TokenOutput] = []
        row = 0
        for chunk in chunks:
            sequence, ends, num_sampled = chunk.sequence, chunk.ends, chunk.num_sampled
            if not reads_finite(sequence):
                outputs.append(self._fail(sequence))
            else:
                self._scheduler.keep(sequence, chunk.num_tokens)
                if num_sampled:
                    assert sampler is not None
                    outputs += self._go_on(chunk, (sampler.choose(row + i, sequence) for i in range(num_sampled)))
                elif ends:
                    outputs.append(prompt_output(sequence))
                    self._end(sequence, forget=outputs[-1].finish_reason is FinishReason.ERROR)
            row += num_sampled
        return outputs

    def _go_on(self, chunk: Chunk, choices: Iterator[Sample]) -> list[TokenOutput]:
        """Take the tokens chosen behind a chunk's rows, one after the other, as long as they are those guessed.

        So each token is chosen from the same logits, and by the same draw of the request's random stream, as it would
        be without a guess: guesses change how fast an answer comes, not what it is.
        """
        sequence, outputs = chunk.sequence, list[TokenOutput]()
        for number, chosen in enumerate(choices):
            if chosen.token_id is None:
                return [*outputs, self._fail(sequence)]
            outputs.append(self._append(sequence, chosen))
            if outputs[-1].finish_reason is not None:
                return outputs
            if chosen.token_id not in chunk.guess[number : number + 1]:
                break
            self._scheduler.keep(sequence, 1)
        if chunk.guess:
            assert sequence.lookup is not None
            sequence.lookup.judge(len(chunk.guess), len(outputs) - 1)
        return outputs

    def _fail(self, sequence: Sequence) -> TokenOutput:
        self._end(sequence, forget=True)
        return failure(sequence)

    def _append(self, sequence: Sequence, chosen: Sample) -> TokenOutput:
        assert chosen.token_id is not None
        if sequence.grammar is not None:
            sequence.grammar.accept(chosen.token_id)
        reason = finish_reason(sequence, chosen.token_id, self._eos_token_ids)
        output = token_output(sequence, chosen, reason)
        if reason is not None:
            self._end(sequence)
        else:
            sequence.token_ids.append(chosen.token_id)
        return output

    def _end(self, sequence: Sequence, *, forget: bool = False) -> None:
        if sequence in self._constraints:
            self._constraints.discard(sequence)
        else:
            self._scheduler.finish(sequence, forget=forget)
        self._drop(sequence)

    def _drop(self, sequence: Sequence) -> None:
        del self._sequences[sequence.request_id]
        self._deadlines.discard(sequence)
        if sequence.adapter is not None:
            self.adapters.leave(sequence.adapter)

    def _check(self, request: GenerationRequest) -> None:
        if request.request_id in self._sequences:
            raise InvalidRequest(f"request_id {request.request_id!r} is in use", field="request_id")
        self._request_check.check(request)
        if request.adapter is not None and not self.adapters.serves(request.adapter):
            raise InvalidRequest(f"adapter {request.adapter} is not loaded", field="adapter")


def _scheduler(config: EngineConfig, blocks: BlockManager, adapters: AdapterPool, pace: PrefillPace) -> Scheduler:
    return Scheduler(
        blocks,
        adapters,
        max_num_seqs=config.max_num_seqs,
        max_batched_tokens=config.max_batched_tokens,
        pace=pace,
        adapter_turn_steps=config.adapter_turn_steps,
        fairness_slack=config.fairness_slack,
        priority_head_start=config.priority_head_start,
        most_guessing_rows=_MOST_GUESSING_ROWS,
    )

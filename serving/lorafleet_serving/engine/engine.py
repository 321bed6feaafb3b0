"""The engine: continuous batching of many adapters over one base model.

Works in tokens and digests. Knows nothing of text, names, registries and processes. Not
thread-safe: one thread calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence as Rows
from itertools import count
from pathlib import Path

import torch

from lorafleet_contract.digest import base_digest
from lorafleet_serving.engine.adapter_pool import AdapterPool
from lorafleet_serving.engine.block_manager import BlockManager
from lorafleet_serving.engine.config import EngineConfig
from lorafleet_serving.engine.device import resolve_device, resolve_dtype
from lorafleet_serving.engine.kv_cache import KvCache
from lorafleet_serving.engine.messages import EngineStats
from lorafleet_serving.engine.model_runner import ModelRunner
from lorafleet_serving.engine.request import FinishReason, GenerationRequest, TokenOutput
from lorafleet_serving.engine.sampler import Sample, sample
from lorafleet_serving.engine.scheduler import Chunk, Scheduler
from lorafleet_serving.engine.sequence import Sequence
from lorafleet_serving.exceptions import GenerationFailed, InvalidRequest
from lorafleet_serving.models.eos import read_eos_token_ids
from lorafleet_serving.models.registry import load_model


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
        model = load_model(config.model, dtype, device)
        kv_cache = KvCache(model.kv_shape, config, dtype, device)
        self.config = config
        self.tokenizer_folder = config.model
        self.base_digest = base_digest(config.model)
        self.max_model_len = kv_cache.longest_sequence(config.max_model_len, model.max_positions)
        self._vocab_size = model.vocab_size
        self._eos_token_ids = read_eos_token_ids(config.model)
        self._adapters = AdapterPool(
            model,
            dtype,
            device,
            host_bytes=config.adapter_host_bytes,
            device_bytes=config.adapter_device_bytes,
        )
        self._blocks = BlockManager(kv_cache.num_blocks, kv_cache.block_size, prefix_caching=config.prefix_caching)
        self._scheduler = Scheduler(
            self._blocks,
            self._adapters,
            max_num_seqs=config.max_num_seqs,
            max_batched_tokens=config.max_batched_tokens,
            max_overtakes=config.max_overtakes,
        )
        self._runner = ModelRunner(model, kv_cache, device)
        self._sequences: dict[str, Sequence] = {}
        self._ended: list[TokenOutput] = []
        """Ends that happened outside a step; the next step reports them."""
        self._arrivals = count()
        self._num_steps = 0

    def step(self) -> list[TokenOutput]:
        """Compute one batch; returns a new token, an end, or both, for each request that got one."""
        chunks = self._schedule()
        outputs, self._ended = self._ended, []
        if chunks:
            logits = self._runner.run(chunks, self._adapters.weights)
            sampling = [chunk.sequence for chunk in chunks if chunk.samples]
            samples = [] if logits is None else sample(logits, sampling, self._eos_token_ids)
            outputs += self._postprocess(chunks, dict(zip(sampling, samples, strict=True)))
            self._num_steps += 1
        return outputs

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it cannot be computed by this model, or its adapter is not loaded.
        """
        self._check(request)
        if request.adapter is not None:
            self._adapters.enter(request.adapter)
        sequence = Sequence(request, next(self._arrivals))
        self._sequences[request.request_id] = sequence
        self._scheduler.add(sequence)

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
        return self._adapters.load(digest, folder)

    def unload_adapter(self, digest: str) -> bool:
        """Drop an adapter; False if requests still use it, then it leaves `stats().host_adapters` with the last."""
        return self._adapters.unload(digest)

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
        assert not self.has_unfinished(), "generate() is for an engine without other requests"
        answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
        try:
            for request in requests:
                self.add_request(request)
            while self.has_unfinished():
                for output in self.step():
                    if output.finish_reason is FinishReason.ERROR:
                        raise GenerationFailed(f"request {output.request_id}: {output.error}")
                    if output.token_id is not None:
                        answers[output.request_id].append(output.token_id)
                    if output.finish_reason is not None and on_finished is not None:
                        on_finished(output.request_id)
        finally:
            # After an error the rest of the batch is of no use; without one this is empty.
            for sequence in list(self._sequences.values()):
                self._end(sequence)
            self._ended.clear()
        return answers

    def stats(self) -> EngineStats:
        """State after the last step."""
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting),
            num_free_blocks=self._blocks.num_free,
            num_kv_blocks=self._blocks.num_blocks,
            device_adapters=self._adapters.device_adapters,
            host_adapters=self._adapters.host_adapters,
            num_steps=self._num_steps,
        )

    def check_integrity(self) -> None:
        """Check every account of the engine; for tests and for idle times."""
        self._scheduler.check_integrity()
        self._adapters.check_integrity()
        live = {*self._scheduler.waiting, *self._scheduler.running}
        assert live == set(self._sequences.values()), "scheduler and engine do not know the same sequences"

    def _schedule(self) -> list[Chunk]:
        chunks = self._scheduler.schedule()
        assert chunks or not self._scheduler.waiting, "nothing runs, and yet nothing can be admitted"
        # The rows of one adapter lie side by side; the base model's come first.
        return sorted(chunks, key=lambda chunk: chunk.sequence.adapter or "")

    def _postprocess(self, chunks: Rows[Chunk], samples: dict[Sequence, Sample]) -> list[TokenOutput]:
        outputs: list[TokenOutput] = []
        for sequence, num_tokens in chunks:
            chosen = samples.get(sequence)
            if chosen is not None and chosen.token_id is None:
                outputs.append(self._fail_not_finite(sequence))
                continue
            sequence.num_computed += num_tokens
            self._blocks.remember(sequence, num_tokens)
            if chosen is not None:
                outputs.append(self._append(sequence, chosen))
        return outputs

    def _append(self, sequence: Sequence, chosen: Sample) -> TokenOutput:
        assert chosen.token_id is not None
        reason = self._finish_reason(sequence, chosen.token_id)
        if reason is not None:
            self._end(sequence)
        else:
            sequence.token_ids.append(chosen.token_id)
        # The end token is no part of the answer.
        token_id = None if reason in (FinishReason.EOS, FinishReason.STOP) else chosen.token_id
        return TokenOutput(sequence.request_id, token_id, reason, chosen.logprob, chosen.alternatives)

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        if token_id in self._eos_token_ids and not sampling.ignore_eos:
            return FinishReason.EOS
        if token_id in sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if sequence.num_generated + 1 >= sampling.max_new_tokens else None

    def _fail_not_finite(self, sequence: Sequence) -> TokenOutput:
        who = f"adapter {sequence.adapter}" if sequence.adapter else "the base model"
        self._end(sequence, forget=True)
        error = f"{who} gave logits that are not finite after {sequence.num_generated} tokens"
        return TokenOutput(sequence.request_id, None, FinishReason.ERROR, error=error)

    def _end(self, sequence: Sequence, *, forget: bool = False) -> None:
        self._scheduler.finish(sequence, forget=forget)
        del self._sequences[sequence.request_id]
        if sequence.adapter is not None:
            self._adapters.leave(sequence.adapter)

    def _check(self, request: GenerationRequest) -> None:
        prompt, sampling = request.prompt_token_ids, request.sampling
        if request.request_id in self._sequences:
            raise InvalidRequest(f"request_id {request.request_id!r} is in use", field="request_id")
        if not prompt:
            raise InvalidRequest("the prompt has no tokens", field="prompt_token_ids")
        if min(prompt) < 0 or max(prompt) >= self._vocab_size:
            raise InvalidRequest(f"token ids must be from 0 to {self._vocab_size - 1}", field="prompt_token_ids")
        for field, named in (("logit_bias", [i for i, _ in sampling.logit_bias]), ("stop", sampling.stop_token_ids)):
            if any(not 0 <= token_id < self._vocab_size for token_id in named):
                raise InvalidRequest(f"{field} names a token id above {self._vocab_size - 1} or below 0", field=field)
        if len(prompt) + request.sampling.max_new_tokens > self.max_model_len:
            raise InvalidRequest(
                f"the prompt has {len(prompt)} tokens and max_new_tokens is {request.sampling.max_new_tokens}, "
                f"together they may be {self.max_model_len}: shorten the prompt or ask for fewer tokens",
                field="max_new_tokens",
            )
        if request.adapter is not None and not self._adapters.serves(request.adapter):
            raise InvalidRequest(f"adapter {request.adapter} is not loaded", field="adapter")

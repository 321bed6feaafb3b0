"""A pass through the model before it serves: operators compile at their first call, which nobody is to wait for."""

from __future__ import annotations

from collections.abc import Sequence as Sequences

from lorafleet_serving.adapters.weights import AdapterWeights
from lorafleet_serving.engine.chunk import Chunk
from lorafleet_serving.engine.model_runner import ModelRunner
from lorafleet_serving.engine.request import GenerationRequest
from lorafleet_serving.engine.sequence import Sequence

_PROMPT_LEN = 80
"""Long enough to be computed as long prompts are."""
_NUM_SEQUENCES = 8
"""More rows than are computed as few."""
_NAME = "rehearsal"


def rehearse(runner: ModelRunner, num_sites: int, longest: int, block_size: int) -> None:
    """Compute a step of each kind: with a prompt, of many rows, of one row, all with an adapter that changes nothing.

    What is written into the cache must not be anybody's yet.

    Args:
        runner: of the model.
        num_sites: places of the model to which adapters attach.
        longest: tokens that a sequence may have.
        block_size: slots of a block.
    """
    adapter = AdapterWeights(_NAME, (None,) * num_sites)
    # The last step comes two tokens after the prompt.
    prompts = [max(1, min(_PROMPT_LEN, longest - 2)), *[1] * (_NUM_SEQUENCES - 1)]
    sequences = [_sequence(num_tokens, longest, block_size) for num_tokens in prompts]
    for members in (sequences, sequences, sequences[:1])[:longest]:  # Each adds a token.
        _compute(runner, members, adapter)


def _sequence(num_tokens: int, longest: int, block_size: int) -> Sequence:
    sequence = Sequence(GenerationRequest(_NAME, (0,) * num_tokens, adapter=_NAME), arrival=0)
    # All write into the same blocks: what they attend to makes no difference.
    sequence.block_table = list(range(-(-longest // block_size)))
    return sequence


def _compute(runner: ModelRunner, sequences: Sequences[Sequence], adapter: AdapterWeights) -> None:
    chunks = [Chunk(sequence, sequence.num_remaining) for sequence in sequences]
    logits = runner.run(chunks, {_NAME: adapter}.__getitem__)
    assert logits is not None, "every chunk reaches its sequence's end"
    runner.likeliest(logits)
    for sequence in sequences:
        sequence.num_computed = len(sequence.token_ids)
        sequence.token_ids.append(0)

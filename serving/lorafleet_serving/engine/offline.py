"""A batch of requests answered to the end, for evaluation and studies: no process, no stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Rows
from typing import TYPE_CHECKING

from lorafleet_serving.engine.request import FinishReason, GenerationRequest
from lorafleet_serving.exceptions import GenerationFailed

if TYPE_CHECKING:
    from lorafleet_serving.engine.engine import Engine


def answer_batch(
    engine: Engine, requests: Rows[GenerationRequest], on_finished: Callable[[str], None] | None
) -> dict[str, list[int]]:
    """What `Engine.generate` does."""
    assert not engine.has_unfinished(), "generate() is for an engine without other requests"
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    try:
        for request in requests:
            engine.add_request(request)
        while engine.has_unfinished():
            for output in engine.step():
                if output.finish_reason is FinishReason.ERROR:
                    raise GenerationFailed(f"request {output.request_id}: {output.error}")
                if output.token_id is not None:
                    answers[output.request_id].append(output.token_id)
                if output.finish_reason is not None and on_finished is not None:
                    on_finished(output.request_id)
    finally:
        # After an error the rest of the batch is of no use; without one nothing is left.
        for request in requests:
            engine.abort(request.request_id)
        while engine.has_unfinished():
            engine.step()
    return answers

"""Cross-entropy of the completion tokens of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorafleet_pipeline.training.data import IGNORED, Batch

if TYPE_CHECKING:
    from peft import PeftModel

_SHORT_LEN = 256
"""Tokens of a row up to which a CPU attends without torch's fused kernel."""


def completion_loss(model: PeftModel, batch: Batch) -> torch.Tensor:
    """Summed loss over completion tokens.

    Logits are made only at positions where some row has a label: the vocabulary is the widest product of a small
    model, and most positions belong to prompts.
    """
    targets = batch.labels[:, 1:]
    positions = torch.nonzero((targets != IGNORED).any(dim=0)).squeeze(1)  # [num_positions]
    with _mixed_precision(model), _attention(batch):
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            logits_to_keep=positions,
            use_cache=False,
        ).logits  # [num_examples, num_positions, vocabulary]
    return F.cross_entropy(
        logits.flatten(0, 1).float(), targets[:, positions].flatten(), ignore_index=IGNORED, reduction="sum"
    )


@contextmanager
def _attention(batch: Batch) -> Iterator[None]:
    """Have short rows attend by plain products on a CPU, where the fused kernel takes far longer for its gradients.

    Long rows are left to it: the scores of all layers are kept until then, and take memory by the square of the length.
    """
    if batch.input_ids.device.type != "cpu" or batch.input_ids.shape[1] > _SHORT_LEN:
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _mixed_precision(model: PeftModel) -> Iterator[None]:
    """Multiply by the adapter's weights, which are fp32, in the type of the base.

    PEFT would take the input of each layer to fp32 and its result back: more traffic than the products themselves.
    """
    dtype = model.get_input_embeddings().weight.dtype
    if dtype is torch.float32:
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model), torch.autocast(model.device.type, dtype):
        yield

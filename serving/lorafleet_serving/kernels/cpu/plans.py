"""What the compiled operators prepare once for a step."""

from __future__ import annotations

from typing import NamedTuple

from lorafleet_serving.kernels.attention_plan import PrefillSpan
from lorafleet_serving.kernels.lora_table import Ints
from lorafleet_serving.kernels.segments import LoraRun


class CompiledPrefill(NamedTuple):
    """Several new tokens of a sequence, whose attention `prefill.paged_prefill` computes."""

    first_row: int
    num_new: int
    slots: Ints
    """[context_len] slots of the whole context, the new tokens last"""


class CpuAttentionPlan(NamedTuple):
    """The attention of one step."""

    slots: Ints
    """[num_tokens] slot that each row's key and value go to"""
    rows: Ints
    """[num_single] rows that are attended one by one"""
    tables: Ints
    """[num_single, num_blocks] their blocks"""
    context_lens: Ints
    """[num_single] tokens that each sees"""
    block_size: int
    compiled_prefills: tuple[CompiledPrefill, ...]
    prefills: tuple[PrefillSpan, ...]
    """Those that torch computes."""

    @property
    def is_by_rows(self) -> bool:
        """Whether all rows are attended one by one."""
        return not (self.compiled_prefills or self.prefills)


class CpuLoraPlan(NamedTuple):
    """The adapters of one step."""

    units: Ints
    """[num_units, 3] what `lora.units_of` gave for the short runs"""
    tables: Ints
    """[num_sites, num_short_runs, ROW_WIDTH]"""
    long_runs: tuple[LoraRun, ...]

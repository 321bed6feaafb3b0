"""Ways to fine-tune, one file each."""

from __future__ import annotations

from lorafleet_pipeline.spec import Method
from lorafleet_pipeline.training.methods.lora import Lora
from lorafleet_pipeline.training.methods.method import FineTuningMethod, TrainableModel
from lorafleet_pipeline.training.methods.qlora import QLora

METHODS: dict[Method, FineTuningMethod] = {Method.LORA: Lora(), Method.QLORA: QLora()}

__all__ = ["METHODS", "FineTuningMethod", "TrainableModel"]

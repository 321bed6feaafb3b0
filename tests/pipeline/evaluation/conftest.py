"""The tiny base model and rows that training's tests have, too."""

from __future__ import annotations

from tests.pipeline.training.conftest import SpecFactory, spec_of, tiny_base

__all__ = ["SpecFactory", "spec_of", "tiny_base"]

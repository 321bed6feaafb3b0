"""The serving engine: continuous batching of many adapters over one base model."""

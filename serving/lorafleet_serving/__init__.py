"""The serving pod: hundreds of LoRA adapters over one base model behind REST."""

"""Request bodies of the LoRAX dialect, as its client sends them: every field may be null."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from lorafleet_serving.api.schemas import RequestBody, Strings


class GenerateParameters(RequestBody):
    """`parameters` of a generate request."""

    adapter_id: str | None = None
    adapter_source: Literal["hub", "local", "s3", "pbase", "mlflow"] | None = Field(
        None, description="Accepted and not used: every adapter comes from the registry"
    )
    api_token: str | None = Field(None, description="Accepted and not used", repr=False)
    variables: dict[str, Any] | None = Field(None, description="Values for the adapter's own prompt template")
    temperature: float | None = None
    repetition_penalty: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    typical_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    do_sample: bool | None = False
    max_new_tokens: int | None = None
    ignore_eos_token: bool | None = False
    return_full_text: bool | None = None
    stop: Strings | None = None
    truncate: int | None = Field(None, ge=1, description="Keep only that many of the prompt's last tokens")
    details: bool | None = False
    return_k_alternatives: int | None = None
    seed: int | None = None
    # Fields that clients send at their neutral value; any other value is refused rather than ignored.
    merged_adapters: None = None
    best_of: Literal[1] | None = None
    watermark: Literal[False] | None = None
    decoder_input_details: Literal[False] | None = None
    apply_chat_template: Literal[False] | None = None
    response_format: None = None


class GenerateRequest(RequestBody):
    """Body of `/generate` and `/generate_stream`."""

    inputs: str = ""
    parameters: GenerateParameters | None = None
    stream: bool | None = None


class TokenizeRequest(RequestBody):
    """Body of `/tokenize`."""

    inputs: str
    add_special_tokens: bool = True

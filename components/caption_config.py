"""Where captions come from and what becomes of them."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from components.section import Section


class CaptionEndpoint(Section):
    """A vision-language model behind an OpenAI-compatible server, such as vLLM in the cluster."""

    kind: Literal["openai"]
    url: str = Field(description="Base address, up to and with /v1.")
    model: str = Field(min_length=1, description="Name under which the server offers it.")
    api_key_variable: str | None = Field(
        None, min_length=1, description="Environment variable that holds the key; none is sent when absent."
    )
    concurrency: int = Field(8, ge=1, le=256, description="Requests under way at once.")
    timeout_s: float = Field(120.0, gt=0, description="For one answer.")
    attempts: int = Field(6, ge=1, description="Of one request, with growing waits, or as long as the server asks.")
    max_wait_s: float = Field(30.0, ge=0, description="Longest wait between two attempts.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment)
        except ValueError:
            fits = False
        if not fits:
            raise ValueError("must be an http:// or https:// address, such as http://vllm:8000/v1")
        if parts.username or parts.password:
            raise ValueError("holds a user name or password; name an environment variable in api_key_variable instead")
        return url.rstrip("/")


class CaptionFolder(Section):
    """A vision-language model from a local folder in the form of `transformers`, run in this process."""

    kind: Literal["folder"]
    folder: str = Field(min_length=1, description="With config.json, the processor's files and .safetensors weights.")
    batch_size: int = Field(8, ge=1, description="Clips at once; halved where the memory does not suffice.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one.")


class CaptionerConfig(Section):
    """A vision-language model that describes the clips which nobody has captioned."""

    source: Annotated[CaptionEndpoint | CaptionFolder, Field(discriminator="kind")]
    num_frames: Literal[1, 2, 3] = Field(3, description="Shown of each video: the middle; quarters; 0.1, 0.5 and 0.9.")
    short_side_px: int = Field(336, ge=32, description="Larger frames are shrunk to it.")
    max_new_tokens: int = Field(300, ge=1, description="Length of an answer; one that is cut ends with its sentence.")
    prompt: str | None = Field(None, min_length=1, description="What is asked; a request of our own when absent.")
    max_failed_share: float = Field(
        0.2, ge=0, le=1, description="The stage fails above this share of clips without an answer."
    )


class CaptionConfig(Section):
    """Captions from a sidecar, the source table, or a model."""

    clean: bool = Field(True, description="Clean twice, as Open-Sora 1.1 does.")
    required: bool = Field(True, description="Drop clips without a caption.")
    captioner: CaptionerConfig | None = Field(None, description="For clips without a caption; none when absent.")
    strip_prefixes: bool = Field(True, description='Remove a model\'s "The video shows" and its like.')
    camera_sentence: bool = Field(False, description='Append "The camera is panning left." where it is known.')

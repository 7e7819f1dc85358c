"""What packing clips into shards may be told."""

from __future__ import annotations

from pydantic import Field

from components.section import Section


class PackConfig(Section):
    """How kept clips become tar shards."""

    shard_size_bytes: int = Field(1 << 30, ge=1 << 10, description="A shard is closed once it is this large.")
    stream_copy: bool = Field(
        True, description="Copy encoded frames where a clip begins with a keyframe and nothing changes."
    )
    codec: str = Field("libx264", description="FFmpeg encoder of clips that are not copied.")
    crf: int = Field(18, ge=0, le=63, description="Quality of that encoder, lower is better.")
    fps: float | None = Field(
        None, gt=0, description="Largest frame rate (Open-Sora 1.1 made all 30); as it is when absent."
    )
    short_side_px: int | None = Field(
        None, ge=16, multiple_of=2, description="Largest shorter side of videos (Open-Sora 1.1: 720); any when absent."
    )
    enlarge: bool = Field(
        False, description="Bring smaller and slower videos up to short_side_px and fps too, as Open-Sora 1.1 did."
    )
    max_failed_share: float = Field(0.1, ge=0, le=1, description="The stage fails above this share of failed clips.")
    workers: int | None = Field(
        None, ge=1, description="Processes; all cores when absent. The result does not depend on it."
    )

"""What every part of a configuration is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Frozen, closed: an unknown key is an error, not a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

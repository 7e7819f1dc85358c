"""Takedown: clips that may no longer be used are named by tombstones, and everything that reads clips asks them.

No shard is written anew and nothing published changes. Curation and planning leave taken-down clips out of what they
make; training and evaluation leave them out of the plans that are there; checkpoints say what they were made without.
"""

from components.takedown.dataset import TakenDown, address, concerning, identity, kept_of, mark, taken_down
from components.takedown.tombstones import (
    ANNOTATION,
    REASON,
    Filed,
    Revocation,
    Rules,
    Span,
    Tombstone,
    beside,
    in_force,
    meets,
    revocations,
    revoke,
    write,
)

__all__ = [
    "ANNOTATION", "REASON", "Filed", "Revocation", "Rules", "Span", "TakenDown", "Tombstone", "address", "beside",
    "concerning", "identity", "in_force", "kept_of", "mark", "meets", "revocations", "revoke", "taken_down", "write",
]  # fmt: skip

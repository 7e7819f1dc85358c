"""`tests.model.parallel_worker` where ColossalAI takes the CPU for a GPU: python -m tests.colossalai.worker CASES.json.

ColossalAI's sharded optimizer refuses CPUs and asks for streams; nothing in its arithmetic needs them.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

from colossalai.accelerator import set_accelerator
from colossalai.accelerator.cpu_accelerator import CpuAccelerator

from tests.model.parallel_worker import main


class CpuInPlaceOfGpu(CpuAccelerator):
    """A CPU whose name the sharded optimizer accepts, with streams that do nothing."""

    def __init__(self):
        super().__init__()
        self._name = "cuda"

    def synchronize(self, device=None):
        pass

    def Stream(self, device=None, priority=0, **kwargs):  # noqa: N802
        return None

    def current_stream(self, device=None):
        return None

    def stream(self, stream):
        return nullcontext()


if __name__ == "__main__":
    set_accelerator(CpuInPlaceOfGpu())
    main(Path(sys.argv[1]))

"""Readings of the machine beside a run's own numbers."""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger(__name__)
SYSTEM_INTERVAL_S = 10.0


class SystemSampler:
    """MLflow's own readings of processor, memory, disk, network and GPU, under the names its pages know."""

    def __init__(self, interval_s: float = SYSTEM_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._started_s = time.monotonic()
        self._next_s = 0.0
        self._monitors: list[Any] | None = None

    def elapsed_s(self) -> int:
        """Whole seconds since this was made: the step of a reading."""
        return int(time.monotonic() - self._started_s)

    def sample(self) -> dict[str, float]:
        """Readings, or nothing when the last ones are younger than the interval."""
        if time.monotonic() < self._next_s:
            return {}
        self._next_s = time.monotonic() + self._interval_s
        if self._monitors is None:
            self._monitors = self._open_monitors()
        readings: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            readings |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return readings

    def _open_monitors(self) -> list[Any]:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = []
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                monitors.append(kind())
            except Exception as error:  # no psutil, no NVIDIA driver: those readings are left out
                logger.debug("no %s: %s", kind.__name__, error)
        return monitors

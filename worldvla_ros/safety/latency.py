# SPDX-License-Identifier: Apache-2.0
"""Percentiles of the recent latencies."""

import math

import numpy as np

from worldvla_ros.errors import ConfigError


class LatencyWindow:
    """
    A ring of the last latencies, of a source that is warm when it starts.

    :param size: latencies kept; ConfigError below 1
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ConfigError(f'a latency window needs size >= 1, got {size}')
        self._ring = np.zeros(size)  # (size,) [s]
        self._added = 0

    def add(self, seconds: float) -> None:
        """Add a latency [s]; one that is not finite or negative (a clock jumped) is ignored."""
        if not math.isfinite(seconds) or seconds < 0:
            return
        self._ring[self._added % len(self._ring)] = seconds
        self._added += 1

    @property
    def count(self) -> int:
        """Latencies that the percentiles are made of."""
        return min(self._added, len(self._ring))

    @property
    def p50(self) -> float:
        """Median [s]; NaN without a latency."""
        return self._percentile(50)

    @property
    def p99(self) -> float:
        """99th percentile [s]; NaN without a latency."""
        return self._percentile(99)

    def _percentile(self, percent: float) -> float:
        return float(np.percentile(self._ring[:self.count], percent)) if self.count else math.nan

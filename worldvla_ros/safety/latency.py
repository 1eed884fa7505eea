# SPDX-License-Identifier: Apache-2.0
"""Percentiles of the recent latencies, without the warm-up."""

import math

import numpy as np

from worldvla_ros.errors import ConfigError


class LatencyWindow:
    """
    A ring of the last latencies.

    :param size: latencies kept
    :param warm_up: first latencies, after the start and after each `clear`, that never count; 0
        for a source that is warm when it starts
    """

    def __init__(self, size: int, *, warm_up: int = 1) -> None:
        if size < 1 or warm_up < 0:
            raise ConfigError('a latency window needs size >= 1 and warm_up >= 0, '
                              f'got {size} and {warm_up}')
        self._ring = np.zeros(size)  # (size,) [s]
        self._warm_up = warm_up
        self._added = -warm_up

    def add(self, seconds: float) -> None:
        """Add a latency [s]; one that is not finite or negative (a clock jumped) is ignored."""
        if not math.isfinite(seconds) or seconds < 0:
            return
        if self._added >= 0:
            self._ring[self._added % len(self._ring)] = seconds
        self._added += 1

    def clear(self) -> None:
        """Start anew, with a warm-up."""
        self._added = -self._warm_up

    @property
    def count(self) -> int:
        """Latencies that the percentiles are made of."""
        return min(max(self._added, 0), len(self._ring))

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

# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM as a wish that a long run fulfils when nothing is lost by it."""

import os
import signal
import threading
import time
from typing import Any


class StopSignals:
    """Takes Ctrl-C and SIGTERM, while it is entered, as a wish to stop at the next good moment.

    A wish that is repeated stops at once, by KeyboardInterrupt. Other threads than the main one
    get no signals, and what is ignored (nohup) stays so.
    """

    SAME_WISH = 1.0  # [s] within which a repeat counts once: `timeout` sends its signal twice

    def __init__(self) -> None:
        self._asked_at: float | None = None  # [s], monotonic
        self._handlers: dict[int, Any] = {}  # that were there before

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked_at is not None

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _take(self, *_: object) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            os.write(2, b'\nstopping after this step; once more to stop at once\n')
        elif now - self._asked_at > self.SAME_WISH:
            raise KeyboardInterrupt

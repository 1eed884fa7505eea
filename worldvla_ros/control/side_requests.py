# SPDX-License-Identifier: Apache-2.0
"""What somebody asks of the backend beside the control loop: single chunks, imagined frames."""

from collections import deque
from collections.abc import Callable

from worldvla_ros.inference.backend import Result

Ask = Callable[[int, int], None]
"""Asks the backend: number of the request, now [ns]. Raises WorldVLAError if it cannot."""


class SideRequests:
    """
    A queue that takes turns with the loop, so that no flood of requests stops the robot.

    One request at a time is with the backend.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Ask, Callable[[Result], None]]] = deque()
        self._callback: Callable[[Result], None] | None = None  # of the one with the backend
        self._was_last = False  # the backend's last request came from here

    def add(self, ask: Ask, callback: Callable[[Result], None]) -> None:
        """Queue a request; the callback gets the answer."""
        self._waiting.append((ask, callback))

    def take(self, loop_waits: bool) -> Ask | None:
        """
        Return the request whose turn it is, or None.

        :param loop_waits: whether the loop wants the backend, too
        """
        if not self._waiting or (self._was_last and loop_waits):
            return None
        self._was_last = True
        ask, self._callback = self._waiting.popleft()
        return ask

    def loop_had_its_turn(self) -> None:
        """Record that the loop gave the backend a request."""
        self._was_last = False

    def answer(self, result: Result) -> None:
        """Hand over the result of the request that was taken, unless it was given up."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback(result)

    def fail(self, why: str) -> None:
        """Answer every request with the reason why there will be no result."""
        refusal = Result(0, None, why)
        self.answer(refusal)
        waiting = list(self._waiting)
        self._waiting.clear()
        for _, callback in waiting:
            callback(refusal)

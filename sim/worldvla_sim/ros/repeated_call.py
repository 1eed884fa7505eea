# SPDX-License-Identifier: Apache-2.0
"""A service that is asked until it answers."""

import math
import time
from typing import Any

from rclpy.client import Client
from rclpy.task import Future

_ASK_AGAIN = 2.0  # [s]


class RepeatedCall:
    """
    Calls a service that may be called twice; spin until `answered` returns True.

    A client may know a server before the server knows the client, and an answer that is sent in
    between is lost. Once one has come, the server knows every client that its node made before
    this one, because DDS tells of them in order.
    """

    def __init__(self, client: Client, request: Any) -> None:
        self._client, self._request = client, request
        self._calls: list[Future] = []
        self._asked = -math.inf

    def answered(self) -> bool:
        """Return whether an answer has come; ask, or ask again, where none has for a while."""
        if any(call.done() for call in self._calls):
            return True
        if self._client.service_is_ready() and time.monotonic() - self._asked > _ASK_AGAIN:
            self._calls.append(self._client.call_async(self._request))
            self._asked = time.monotonic()
        return False

    @property
    def result(self) -> Any:
        """The first answer."""
        return next(call.result() for call in self._calls if call.done())

# SPDX-License-Identifier: Apache-2.0
"""The service ~/imagine: what the world model expects to see after some actions."""

from collections.abc import Callable
import time

import numpy as np
from numpy.typing import NDArray
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import Image

from worldvla_ros.datatypes import ACTION_DIM, Frame, ImaginedFrame, Observation
from worldvla_ros.errors import InferenceError, WorldVLAError
from worldvla_ros.nodes import conversions
from worldvla_ros.nodes.policy_loop import PolicyLoop
from worldvla_ros.srv import Imagine

LONGEST = 50  # actions of one call: the frames come in one message, which one thread sends
_FRAME_ID = 'imagined'


class Imagination:
    """
    Plays one rollout at a time, the newest: a client that is gone blocks nobody.

    Whatever ends a rollout, what was imagined until then is returned.

    :param loop: returns the topics of the active policy. Raises InferenceError without one.
    """

    def __init__(self, node: Node, loop: Callable[[], PolicyLoop]) -> None:
        self._loop = loop
        self._calls = 0
        self._images = node.create_publisher(Image, '~/imagined_image', 10)
        # In the node's own group, a call that waits for its frames would stop every timer.
        node.create_service(Imagine, '~/imagine', self._on_imagine,
                            callback_group=ReentrantCallbackGroup())

    async def _on_imagine(self, request: Imagine.Request,
                          response: Imagine.Response) -> Imagine.Response:
        started = time.monotonic()
        try:
            await self._imagine(request, response)
            response.success = True
        except WorldVLAError as error:
            response.message = str(error)
        response.latency = time.monotonic() - started
        return response

    async def _imagine(self, request: Imagine.Request, response: Imagine.Response) -> None:
        """Fill in the response, frame by frame."""
        given = _actions_of(request)
        loop = self._loop()
        inquiries = loop.controller.inquiries
        inquiries.check_imagining()
        seen = (inquiries.see(loop.now_ns()) if len(given) else inquiries.observe(
            loop.now_ns(), request.instruction or loop.controller.instruction))
        call = self._calls = self._calls + 1  # now, since a call that is refused ends no other
        response.observation = conversions.frame_to_image(seen.frames[-1], '')
        actions = given if len(given) else await self._policy_actions(seen)
        start: Frame | None = seen.frames[-1]
        for action in actions:
            if call != self._calls:
                raise InferenceError('a newer call took over')
            imagined = await self._frame_after(action, start)
            start = None
            image = conversions.frame_to_image(imagined.frame, _FRAME_ID)
            self._images.publish(image)
            response.frames.append(image)
            response.actions.extend(action.tolist())
            response.entropy.append(float(imagined.entropy.mean()))

    async def _frame_after(self, action: NDArray[np.float32], start: Frame | None
                           ) -> ImaginedFrame:
        """Return the frame after an action (7,), see `Inquiries.frame_after`."""
        result = await self._loop().ask(lambda inquiries, answered: inquiries.frame_after(
            action, start, answered))
        if result.imagined is None:
            raise InferenceError(result.error)
        return result.imagined

    async def _policy_actions(self, seen: Observation) -> NDArray[np.float32]:
        """Return the chunk (K, 7) that the policy would do from an observation."""
        result = await self._loop().ask(lambda inquiries, answered: inquiries.chunk_to_imagine(
            seen, answered))
        if result.chunk is None:
            raise InferenceError(result.error)
        return result.chunk.actions


def _actions_of(request: Imagine.Request) -> NDArray[np.float32]:
    """Return the actions (N, 7) of a request. Raises InferenceError for what are none."""
    values = np.array(request.actions, np.float32)
    if len(values) % ACTION_DIM or len(values) > LONGEST * ACTION_DIM:
        raise InferenceError(f'actions must be N x {ACTION_DIM} values, row by row, with N from 0 '
                             f'to {LONGEST}, got {len(values)} values')
    if not (np.abs(values) <= 1).all():  # nor is NaN
        raise InferenceError('actions must be controller input in [-1, 1], got '
                             f'{values[~(np.abs(values) <= 1)][0]}')
    return values.reshape(-1, ACTION_DIM)

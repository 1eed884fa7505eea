# SPDX-License-Identifier: Apache-2.0
"""What clients may ask of the policy node: pauses, resets, one chunk, imagined frames."""

from collections.abc import Callable

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from std_srvs.srv import SetBool, Trigger

from worldvla_ros.errors import InferenceError, InstructionError
from worldvla_ros.nodes import conversions
from worldvla_ros.nodes.estop_input import EStopInput
from worldvla_ros.nodes.imagination import Imagination
from worldvla_ros.nodes.policy_loop import PolicyLoop
from worldvla_ros.srv import GetActionChunk

_NOT_CONFIGURED = 'the node is not configured: no policy is loaded'


class PolicyServices:
    """
    Serves as long as the node lives; every refusal says why.

    :param loop: returns the topics of the policy, or None while the node is not configured
    """

    def __init__(self, node: Node, loop: Callable[[], PolicyLoop | None],
                 estop: EStopInput) -> None:
        self._loop = loop
        self._estop = estop
        node.create_service(SetBool, '~/pause', self._on_pause)
        node.create_service(Trigger, '~/estop_reset', self._on_estop_reset)
        node.create_service(Trigger, '~/reset_history', self._on_reset_history)
        # In the node's own group, a call that waits for its chunk would stop every timer.
        node.create_service(GetActionChunk, '~/get_action_chunk', self._on_get_action_chunk,
                            callback_group=ReentrantCallbackGroup())
        Imagination(node, self._active_loop)

    def _active_loop(self) -> PolicyLoop:
        """Return the topics of the active policy. Raises InferenceError without one."""
        loop = self._loop()
        if loop is None or not loop.active:
            raise InferenceError(_NOT_CONFIGURED if loop is None else 'the node is not active')
        return loop

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        loop = self._loop()
        if loop is None:
            return SetBool.Response(message=_NOT_CONFIGURED)
        loop.controller.set_paused(request.data)
        loop.answer()
        return SetBool.Response(success=True, message='paused' if request.data else 'going on')

    def _on_estop_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._estop.latch.locked:
            return Trigger.Response(success=True, message='it was not locked; nothing changes')
        if refusal := self._estop.reset():
            return Trigger.Response(message=f'still locked: {refusal}')
        if loop := self._loop():
            loop.hold_at_once()
        return Trigger.Response(
            success=True, message='unlocked; the robot holds still until an instruction comes')

    def _on_reset_history(self, _: Trigger.Request,
                          response: Trigger.Response) -> Trigger.Response:
        loop = self._loop()
        if loop is None:
            return Trigger.Response(message=_NOT_CONFIGURED)
        loop.controller.reset_history()
        return Trigger.Response(success=True, message='frames and plans are forgotten')

    async def _on_get_action_chunk(self, request: GetActionChunk.Request,
                                   response: GetActionChunk.Response) -> GetActionChunk.Response:
        try:
            loop = self._active_loop()
            result = await loop.ask(lambda inquiries, answered: inquiries.chunk(
                request.instruction or loop.controller.instruction, answered))
        except (InferenceError, InstructionError) as error:
            return GetActionChunk.Response(message=str(error))
        if result.chunk is None:
            return GetActionChunk.Response(message=result.error)
        return GetActionChunk.Response(
            success=True, chunk=conversions.chunk_to_message(result.chunk, loop.header()))

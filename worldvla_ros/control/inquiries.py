# SPDX-License-Identifier: Apache-2.0
"""What clients may ask beside the control loop: one chunk, one imagined frame. Nothing moves."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from worldvla_ros.control.planner import Planner
from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import InferenceError, InstructionError
from worldvla_ros.inference.backend import Backend, BackendInfo, Result


class Inquiries:
    """
    Checks each request and queues it; its callback gets exactly one answer.

    :param check_instruction: returns an instruction as it would be followed, or raises
    :param needs_backend: whether the robot needs the backend for itself now
    """

    def __init__(self, planner: Planner, backend: Backend, info: BackendInfo, *,
                 check_instruction: Callable[[str], str],
                 needs_backend: Callable[[], bool]) -> None:
        self._planner = planner
        self._backend = backend
        self._info = info
        self._check_instruction = check_instruction
        self._needs_backend = needs_backend

    def chunk(self, instruction: str, callback: Callable[[Result], None]) -> None:
        """Ask for one chunk from what is seen when it is its turn. Raises InstructionError."""
        ask = self._planner.chunk_for(self._checked(instruction))
        self._planner.requests.add(ask, callback)

    def check_imagining(self) -> None:
        """
        Raise InferenceError where nothing can be imagined now.

        That is without a world model, and while the robot needs the backend: a frame takes as long
        as many chunks.
        """
        if not self._info.imagines:
            raise InferenceError('no world model is loaded; start the node with the parameter '
                                 'world_model:=true and the backend worker or inproc')
        if self._needs_backend():
            raise InferenceError('the robot follows an instruction, and imagining would take its '
                                 'chunks away; pause it, or let it finish')

    def chunk_to_imagine(self, seen: Observation, callback: Callable[[Result], None]) -> None:
        """
        Ask for the chunk that follows from what was seen.

        What `check_imagining` raises when its turn has come is the answer.

        :param seen: as of `observe`
        """
        self._imagine(lambda number: self._backend.submit(number, seen), callback)

    def frame_after(self, action: NDArray[np.floating], start: Frame | None,
                    callback: Callable[[Result], None]) -> None:
        """
        Ask for the frame after an action (7,); errors as in `chunk_to_imagine`.

        :param start: frame to start from; None: the one that was imagined last
        """
        self._imagine(lambda number: self._backend.imagine(number, action, start), callback)

    def see(self, now_ns: int) -> Observation:
        """Return what the third-person camera shows now. Raises FrameError."""
        return self._planner.see(now_ns)

    def observe(self, now_ns: int, instruction: str) -> Observation:
        """
        Return what the policy may see now.

        Raises FrameError, and InstructionError where there is no instruction.
        """
        return self._planner.observe(now_ns, self._checked(instruction))

    def _imagine(self, ask: Callable[[int], None], callback: Callable[[Result], None]) -> None:
        def ask_in_turn(number: int, now_ns: int) -> None:
            self.check_imagining()  # an instruction may have come while it waited
            ask(number)
        self._planner.requests.add(ask_in_turn, callback)

    def _checked(self, instruction: str) -> str:
        checked = self._check_instruction(instruction)
        if not checked:
            raise InstructionError('there is no instruction: give one, or publish one')
        return checked

# SPDX-License-Identifier: Apache-2.0
"""Which texts may become an instruction, and which of those on the topic ask for something."""

from collections import deque
from enum import Enum

from worldvla_ros.errors import InstructionError

_MAX_BARRED = 16  # texts; more than there are publishers that repeat theirs


def checked_instruction(text: str, max_length: int) -> str:
    """
    Return the text in single-spaced words; empty where there are none.

    :param max_length: [characters]
    Raises InstructionError for a text that is too long or has control characters.
    """
    instruction = ' '.join(text.split())
    if len(instruction) > max_length:
        raise InstructionError(f'an instruction may have {max_length} characters, got '
                               f'{len(instruction)}')
    if not instruction.isprintable():
        raise InstructionError('an instruction must be plain text, got control characters')
    return instruction


class Heard(Enum):
    """What a text on the instruction topic asks for; the value says why it is ignored."""

    NEW = ''
    SAME = 'it is followed already'
    LOCKED = ('the e-stop is locked; release it, call estop_reset, publish an empty instruction, '
              'then this one again')
    REPEATED = ('it came while the e-stop was locked, too, or again and again until then, and a '
                'reset alone must not start the robot; publish an empty instruction first, or use '
                '--once')


class InstructionTopic:
    """
    Tells a text that asks for something from one that a publisher only repeats.

    `ros2 topic pub` repeats its text every second. While that is followed, it asks for nothing
    new. After an e-stop it must not start the robot before anybody else has said so: a text that
    came while the e-stop was locked, or repeatedly until then, counts again only after an empty
    text or another one.
    """

    def __init__(self) -> None:
        self._again = ''  # came again while it was followed
        self._barred: deque[str] = deque(maxlen=_MAX_BARRED)

    def hear(self, text: str, followed: str, locked: bool) -> Heard:
        """
        Take note of a text and say what it asks for.

        :param text: as `checked_instruction` returns it
        :param followed: the instruction that the robot follows
        :param locked: whether the e-stop is
        """
        if text and locked:
            self._bar(text)
            return Heard.LOCKED
        if text and text == followed:
            self._again = text
            return Heard.SAME
        if text and text in self._barred:
            return Heard.REPEATED
        self._again = ''
        self._barred.clear()
        return Heard.NEW

    def estop_dropped(self, followed: str) -> None:
        """Take note that the e-stop ended an instruction."""
        if followed == self._again:
            self._bar(followed)

    def _bar(self, text: str) -> None:
        if text not in self._barred:
            self._barred.append(text)

# SPDX-License-Identifier: Apache-2.0
"""Which texts may become an instruction, and which of those on the topic ask for something."""

from collections import deque
from enum import Enum

from worldvla_ros.errors import InstructionError

_MAX_BARRED = 16  # texts; more than there are publishers that repeat theirs
_REPETITION = 2  # times in succession: more come from a publisher that repeats
_PAUSE_NS = 3_000_000_000  # what comes after it is no repetition; `ros2 topic pub` waits for 1 s


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
    BARRED = ('it came while the e-stop was locked, too, or again and again until then, and a '
              'reset alone must not start the robot; publish an empty instruction first, or use '
              '--once')
    REPEATED = ('a publisher repeats it, and only a new instruction starts the robot; stop that '
                'publisher, wait 3 s, and publish it once')


class InstructionTopic:
    """
    Tells a text that asks for something from one that a publisher only repeats.

    `ros2 topic pub` repeats its text every second. While that is followed, it asks for nothing
    new. When the robot was stopped, by an empty text or the end of a goal, follows something else,
    or was not active yet, a text that was repeated until then starts nothing, as long as it goes
    on: else the robot would move again within a second. After an e-stop a text that was repeated
    until then, or came while it was locked, starts nothing before an empty text or another one
    came, either.

    It outlives the policy, as the e-stop does.
    """

    def __init__(self) -> None:
        self._again = ''  # came again while it was followed
        self._barred: deque[str] = deque(maxlen=_MAX_BARRED)
        self._said: dict[str, tuple[int, int]] = {}  # steady time of the last [ns], how many

    def hear(self, text: str, followed: str, locked: bool, steady_ns: int) -> Heard:
        """
        Take note of a text and say what it asks for.

        :param text: as `checked_instruction` returns it
        :param followed: the instruction that the robot follows
        :param locked: whether the e-stop is
        """
        self._said = {one: said for one, said in self._said.items()
                      if steady_ns - said[0] <= _PAUSE_NS}
        times = self._said.get(text, (0, 0))[1]
        heard = self._judge(text, followed, locked, times) if text else Heard.NEW
        if heard is Heard.NEW:
            self._again = ''
            self._barred.clear()
        if text:
            self._said[text] = steady_ns, times + 1
        else:  # by hand, a stop and a text may follow each other as fast as one likes
            self._said = {one: said for one, said in self._said.items()
                          if said[1] >= _REPETITION}
        return heard

    def _judge(self, text: str, followed: str, locked: bool, times: int) -> Heard:
        if locked:
            self._bar(text)
            return Heard.LOCKED
        if text == followed:
            self._again = text
            return Heard.SAME
        if text in self._barred:
            return Heard.BARRED
        return Heard.NEW if times < _REPETITION else Heard.REPEATED

    def estop_dropped(self, followed: str) -> None:
        """Take note that the e-stop ended an instruction."""
        if followed == self._again:
            self._bar(followed)

    def _bar(self, text: str) -> None:
        if text not in self._barred:
            self._barred.append(text)

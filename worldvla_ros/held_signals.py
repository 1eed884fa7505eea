# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and SIGTERM wait while code runs that must not be cut short."""

from collections.abc import Iterator
import contextlib
import ctypes
import signal
import threading
from types import FrameType

HELD_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_libc = ctypes.CDLL(None)
_SIGACTION_SIZE = 512  # [bytes]; the struct takes 152 on 64-bit Linux


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Let HELD_SIGNALS take effect when the block has ended, however it ended.

    For code of others with destructors, which fail on what is half built, and in which Python
    prints and drops what a handler raises. Only handlers in Python can do that: what is ignored,
    or kills, stays so, and so does all in other threads than the main one, where none runs. A
    wake-up fd hears of a signal when it comes, and again after the block.

    Handlers are replaced instead of signals blocked, because the kernel gives what the main thread
    blocks to another one, as OpenBLAS's, and Python runs the handler in the main thread for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {int(number): handler for number in HELD_SIGNALS
                if callable(handler := signal.getsignal(number))}
    below_python = {number: _action(number) for number in handlers}  # of rclpy, or faulthandler
    came: list[int] = []
    holding = True

    def note(number: int, frame: FrameType | None) -> None:
        if not holding:  # another one raised while handlers were put back
            handlers[number](number, frame)
        elif number not in came:
            came.append(number)
    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        holding = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
            _libc.sigaction(number, below_python[number], None)
        for number in came:
            signal.raise_signal(number)


def _action(number: int) -> ctypes.Array[ctypes.c_char]:
    """Return what the system does on a signal, for sigaction to put it back."""
    action = ctypes.create_string_buffer(_SIGACTION_SIZE)
    _libc.sigaction(number, None, action)
    return action

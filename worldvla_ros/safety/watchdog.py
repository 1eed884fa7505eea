# SPDX-License-Identifier: Apache-2.0
"""Deadlines and latches: watchdog, restart budget, emergency stop. No clock of their own."""

from collections import deque

from worldvla_ros.errors import ConfigError


class Watchdog:
    """
    Expires when it was not fed for longer than a timeout, or never.

    :param name: what feeds it, for messages
    :param timeout_ns: longest silence [ns]
    """

    def __init__(self, name: str, timeout_ns: int) -> None:
        if timeout_ns <= 0:
            raise ConfigError(f'the timeout of watchdog {name!r} must be above 0, '
                              f'got {timeout_ns} ns')
        self.name = name
        self.timeout_ns = timeout_ns
        self._fed_ns: int | None = None

    def feed(self, now_ns: int) -> None:
        """Record a sign of life."""
        self._fed_ns = now_ns

    def clear(self) -> None:
        """Forget all signs of life: expired until fed."""
        self._fed_ns = None

    def age_ns(self, now_ns: int) -> int | None:
        """Time since the last sign of life [ns]; None before the first."""
        return None if self._fed_ns is None else now_ns - self._fed_ns

    def expired(self, now_ns: int) -> bool:
        """Whether the silence is too long; also after the clock jumped back that far."""
        age_ns = self.age_ns(now_ns)
        return age_ns is None or abs(age_ns) > self.timeout_ns


class RestartBudget:
    """
    Allows so many restarts in a sliding window; needs a clock that never goes back.

    :param max_restarts: restarts within the window; 0 forbids any
    :param window_ns: length of the window [ns]
    """

    def __init__(self, max_restarts: int, window_ns: int) -> None:
        if max_restarts < 0 or window_ns <= 0:
            raise ConfigError('a restart budget needs max_restarts >= 0 and window_ns > 0, '
                              f'got {max_restarts} and {window_ns}')
        self.max_restarts = max_restarts
        self.window_ns = window_ns
        self._restarts_ns: deque[int] = deque(maxlen=max_restarts)

    def allow(self, now_ns: int) -> bool:
        """Spend one restart if there is one."""
        if self.remaining(now_ns) == 0:
            return False
        self._restarts_ns.append(now_ns)
        return True

    def remaining(self, now_ns: int) -> int:
        """Count the restarts that are left now."""
        while self._restarts_ns and now_ns - self._restarts_ns[0] >= self.window_ns:
            self._restarts_ns.popleft()
        return self.max_restarts - len(self._restarts_ns)


class EStop:
    """
    A latch: the input locks it, and only a reset with the input released unlocks it.

    With a heartbeat timeout the input must be repeated; silence locks, too, because a cut wire
    must look like a pressed button. Then it starts locked: what was heard so far may be old.

    :param heartbeat_timeout_ns: longest silence of the input [ns]; None: silence is no matter
    """

    def __init__(self, heartbeat_timeout_ns: int | None = None) -> None:
        self._heartbeat = (None if heartbeat_timeout_ns is None
                           else Watchdog('e-stop input', heartbeat_timeout_ns))
        self._pressed = False
        self._cause = '' if self._heartbeat is None else 'not reset since the start'

    @property
    def locked(self) -> bool:
        """Whether it is locked, as of the last call of `set`, `poll` or `reset`."""
        return bool(self._cause)

    @property
    def cause(self) -> str:
        """What locked it; empty if it is not locked."""
        return self._cause

    @property
    def pressed(self) -> bool:
        """Whether the input said so last."""
        return self._pressed

    def set(self, pressed: bool, now_ns: int | None = None) -> None:
        """
        Take the state of the input; True locks, False alone never unlocks.

        :param now_ns: time of the message [ns]; needed with a heartbeat timeout
        """
        self.hear(now_ns)
        self._pressed = pressed
        if pressed:
            self._cause = 'pressed'

    def hear(self, now_ns: int | None) -> None:
        """Note that the input is alive, and nothing else."""
        if self._heartbeat is not None and now_ns is not None:
            self._heartbeat.feed(now_ns)

    def lock(self, cause: str) -> None:
        """Lock for another cause than the input."""
        self._cause = cause

    def poll(self, now_ns: int) -> bool:
        """Lock if the heartbeat is overdue; return whether it is locked."""
        if self._silent(now_ns) and not self.locked:
            self._cause = 'its input fell silent'
        return self.locked

    def reset(self, now_ns: int | None = None) -> bool:
        """Unlock if the input is released and alive; return whether it is unlocked."""
        if not self._pressed and not self._silent(now_ns):
            self._cause = ''
        return not self.locked

    def _silent(self, now_ns: int | None) -> bool:
        if self._heartbeat is None:
            return False
        return now_ns is None or self._heartbeat.expired(now_ns)

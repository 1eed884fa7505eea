# SPDX-License-Identifier: Apache-2.0
"""One environment at a time, built anew only when another one is asked for."""

from typing import Any

from worldvla_sim.libero_env import LiberoEnv


class KeptEnvironment:
    """An environment that stays while the same is asked for: to build one takes a second."""

    def __init__(self) -> None:
        self._env: LiberoEnv | None = None
        self._key: tuple[str, int, dict[str, Any]] | None = None

    def get(self, suite: str, task: int, **options: Any) -> LiberoEnv:
        """Return the environment of a task; the options are those of `LiberoEnv`.

        After one that could not be built there is none, and the next call builds.
        """
        key = (suite, task, options)
        if self._env is None or key != self._key:
            self.close()
            self._env, self._key = LiberoEnv(suite, task, **options), key
        return self._env

    @property
    def env(self) -> LiberoEnv | None:
        """What `get` returned last, None before and after `close`."""
        return self._env

    def close(self) -> None:
        """Free the simulator; safe to repeat."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

# SPDX-License-Identifier: Apache-2.0
"""What can play an episode, and the registry that turns `--policy NAME` into it."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from worldvla_ros.errors import ConfigError
from worldvla_sim.libero_env import NO_OP, LiberoEnv, SimObservation


class EpisodePolicy(Protocol):
    """Anything that plays episodes in process: one action per control step."""

    needs_images: bool  # False lets the runner skip rendering

    def start(self, env: LiberoEnv, observation: SimObservation) -> None:
        """Begin an episode; experts may keep `env` and read its privileged state."""

    def act(self, observation: SimObservation) -> np.ndarray:
        """Return the next action, (7,) controller input in [-1, 1]."""


class HoldPolicy:
    """Never moves: the baseline that must fail, and a way to look at settled scenes."""

    needs_images = False

    def start(self, env: LiberoEnv, observation: SimObservation) -> None:
        """Nothing to prepare."""

    def act(self, observation: SimObservation) -> np.ndarray:
        """Return the no-op action."""
        return NO_OP


def _expert() -> EpisodePolicy:
    from worldvla_sim.expert.policy import ExpertPolicy
    return ExpertPolicy()


POLICIES: dict[str, Callable[[], EpisodePolicy]] = {'expert': _expert, 'hold': HoldPolicy}
"""Policies by name. A factory runs in the worker process that plays the episodes."""


def make_policy(name: str) -> EpisodePolicy:
    """Build a policy by its name.

    :raises ConfigError: unknown name; lists the known ones.
    """
    if name not in POLICIES:
        raise ConfigError(f'unknown policy {name!r}, there are: {", ".join(POLICIES)}')
    return POLICIES[name]()

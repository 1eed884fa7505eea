# SPDX-License-Identifier: Apache-2.0
"""One simulated episode behind the bridge: what runs, how far it is, how it ended. No ROS here."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from worldvla_ros.errors import SimulationError
from worldvla_sim.kept_environment import KeptEnvironment
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.observation import SimObservation
from worldvla_sim.ros.bridge_settings import BridgeSettings


class EpisodeState(IntEnum):
    """State of an episode; Episode.msg STATE_*."""

    IDLE = 0
    RUNNING = 1
    SUCCESS = 2
    TIMEOUT = 3
    ERROR = 4
    ABORTED = 5


@dataclass(frozen=True)
class EpisodeRequest:
    """Which episode to play."""

    suite: str
    task: int
    init_state: int | None  # None: random reset from the seed
    seed: int


class EpisodePlayer:
    """Keeps one environment and plays episodes in it, building another when the task changes."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._settings = settings
        self._kept = KeptEnvironment()
        self.request: EpisodeRequest | None = None
        self.observation: SimObservation | None = None
        self.state = EpisodeState.IDLE
        self.number = 0
        self.steps = 0
        self.error = ''

    def reset(self, request: EpisodeRequest) -> None:
        """
        Start an episode. Raises SimulationError, and is IDLE, if it cannot be.

        Whatever ran before is over: its observation can no longer be stepped.
        """
        self._forget()
        settings = self._settings
        env = self._kept.get(request.suite, request.task, assets=settings.assets,
                             robot=settings.robot, msaa=settings.msaa,
                             image_size=settings.image_size, wrist=settings.wrist)
        self.observation = env.reset(request.init_state, seed=request.seed,
                                     settle_steps=settings.settle_steps)
        self.request = request
        self.number += 1
        self.steps, self.error = 0, ''
        self.state = EpisodeState.RUNNING

    def step(self, action: np.ndarray) -> None:
        """Play one control step, (7,) controller input; a failure ends the episode as ERROR."""
        try:
            self.observation = self.env.step(action)
        except SimulationError as error:
            self.error = str(error)
            self.state = EpisodeState.ERROR
            self.observation = None  # a broken simulator shows nothing, rather than an old picture
            return
        self.steps += 1
        if self.env.success:
            self.state = EpisodeState.SUCCESS
        elif self.steps >= self.max_steps:
            self.state = EpisodeState.TIMEOUT

    def close(self) -> None:
        """Free the simulator; safe to repeat. No episode runs then."""
        self._forget()
        self._kept.close()

    def _forget(self) -> None:
        """Let no episode run, so that nothing is stepped any more."""
        self.state, self.request, self.observation = EpisodeState.IDLE, None, None

    @property
    def running(self) -> bool:
        """Whether the episode can be stepped."""
        return self.state is EpisodeState.RUNNING

    @property
    def env(self) -> LiberoEnv:
        """The environment of the episode. Raises SimulationError before the first reset."""
        if self._kept.env is None:
            raise SimulationError('no episode yet: call reset')
        return self._kept.env

    @property
    def max_steps(self) -> int:
        """Limit of control steps."""
        return self._settings.max_steps or self.env.max_steps

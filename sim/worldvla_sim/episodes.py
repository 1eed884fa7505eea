# SPDX-License-Identifier: Apache-2.0
"""Play one episode and say what happened; a crash is an error, never a failed episode."""

from collections.abc import Callable
from dataclasses import dataclass
import time

import numpy as np

from worldvla_sim.libero_env import LOCKSTEP, LiberoEnv
from worldvla_sim.observation import SimObservation, rendered
from worldvla_sim.policies import EpisodePolicy
from worldvla_sim.scattering import Scattering

_SEEDS = 2 ** 32  # that `reset` takes


@dataclass(frozen=True)
class EpisodeRecord:
    """One line of an evaluation's result file."""

    suite: str
    task: int  # index in the suite
    instruction: str
    init_state: int  # index of the official initial state
    success: bool
    steps: int  # control steps after settling, up to and including the successful one
    error: str | None  # None when the episode ran to its end
    assets: str  # 'builtin' or 'official'
    duration: float = 0.0  # [s] wall time, reset included
    policy: str = ''  # 'expert', or name, size, number format and fingerprint of a checkpoint
    robot: str = ''  # 'light' or 'full'
    image_size: int = 0  # side of the pictures that the policy saw [px]; 0: it saw none
    also_reads: str = ''  # of a checkpoint beside the third-person camera, such as 'arm state'
    over: str = 'process'  # or 'ros'
    mode: str = LOCKSTEP  # or REALTIME: the simulator did not wait for the policy
    video: str | None = None  # path of the mp4, where one was kept
    scatter: float = 0.0  # [m] that objects were moved by before the first step, at most


def play(env: LiberoEnv, policy: EpisodePolicy, observation: SimObservation, max_steps: int,
         on_step: Callable[[np.ndarray, SimObservation], None] | None = None) -> bool:
    """Let the policy act until success or the step limit; return the official success.

    :param observation: what `env.reset` returned.
    :param on_step: called after each step with the action and the observation it led to.
    """
    policy.start(env, observation)
    while not env.success and env.steps < max_steps:
        action = policy.act(observation)
        observation = env.step(action)
        if on_step is not None:
            on_step(action, observation)
    return env.success


def run_episode(env: LiberoEnv, policy: EpisodePolicy, init_state: int, *, seed: int = 0,
                max_steps: int | None = None, scatter: float = 0.0,
                frames: list[np.ndarray] | None = None) -> EpisodeRecord:
    """Play one official initial state to its end.

    :param max_steps: None means the published limit of the suite.
    :param scatter: what stands free is moved by so much at most along each axis [m], each initial
        state in a way of its own.
    :param frames: gets the pictures, (H, W, 3) uint8 RGB, from before the first step on.
    """
    began = time.perf_counter()
    observation = env.reset(init_state, seed=seed)
    if scatter > 0:
        observation = Scattering(env, scatter, _SEEDS * init_state + seed).scatter()
    if frames is not None:
        frames.append(rendered(observation.agentview))
    success = play(env, policy, observation, max_steps or env.max_steps,
                   None if frames is None else
                   lambda _, seen: frames.append(rendered(seen.agentview)))
    return EpisodeRecord(env.suite, env.task, env.instruction, init_state, success, env.steps,
                         None, env.assets, round(time.perf_counter() - began, 3), scatter=scatter)

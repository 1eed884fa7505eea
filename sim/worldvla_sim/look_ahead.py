# SPDX-License-Identifier: Apache-2.0
"""What a policy would do from here on, played in a copy of this process.

A simulator and an expert are more than the state of the physics: controllers, grippers and plans
remember, too. So nothing is stored and put back: the process forks, the child plays on without
pictures, hands its actions over and ends, and here no time has passed.
"""

import os
import sys
import traceback

import numpy as np

from worldvla_ros.datatypes import ACTION_DIM
from worldvla_ros.errors import SimulationError
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.policies import EpisodePolicy


def look_ahead(env: LiberoEnv, policy: EpisodePolicy, action: np.ndarray, steps: int
               ) -> np.ndarray:
    """
    Return the next actions of a policy that acts alone from here on, (steps, 7) controller input.

    :param policy: one that needs no pictures, such as the expert.
    :param action: (7,) that it has chosen at this instant: the first.
    :raises SimulationError: the physics or the policy failed in the copy.
    """
    readable, writable = os.pipe()
    sys.stdout.flush()  # what is buffered would be written by both
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _play(env, policy, action, steps, writable)
    os.close(writable)
    with os.fdopen(readable, 'rb') as pipe:
        actions = np.frombuffer(pipe.read())
    os.waitpid(child, 0)
    if actions.size != steps * ACTION_DIM:
        raise SimulationError(f'{env}: looking {steps} steps ahead of step {env.steps} failed '
                              f'after {actions.size // ACTION_DIM}, see above')
    return actions.reshape(steps, ACTION_DIM)


def _play(env: LiberoEnv, policy: EpisodePolicy, action: np.ndarray, steps: int, writable: int
          ) -> None:
    """Play on in the child and end it; nothing of it outlives this."""
    try:
        env.stop_rendering()
        with os.fdopen(writable, 'wb', buffering=0) as pipe:
            for step in range(steps):
                pipe.write(np.asarray(action, dtype=np.float64).tobytes())
                if step + 1 < steps:
                    action = policy.act(env.step(action))
    except Exception:  # the parent only sees that there are too few actions
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)  # also on Ctrl-C: the parent goes on, and must not do so twice

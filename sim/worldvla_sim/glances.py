# SPDX-License-Identifier: Apache-2.0
"""Other layouts for the states of a demonstration: single steps, each with things elsewhere.

An episode that is played shows a few layouts, and takes most of its time for physics. To learn
where things are, a network needs many: so the simulator is put into each recorded state, what
stands free is laid elsewhere, and the expert says what it would do there, and for what. Nothing is
played, so nothing follows from the step before, and there is one action to learn at each.
"""

import zlib

import h5py
import numpy as np

from worldvla_sim.demonstrations import Demonstration, DemonstrationRecorder
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.scattering import Scattering

FINGERS = ('gripper0_gripper_finger_joint1', 'gripper0_gripper_finger_joint2')
_OPENED, _PER_STEP = 0.04, 0.005  # [m] of a finger: fully, and as its target moves in one step
_GAPS = (0.002, 0.004, 0.012)  # [m] between objects; some of LIBERO's stand so close


def glances(env: LiberoEnv, recorded: h5py.Group, states: np.ndarray, reach: float, seed: int
            ) -> Demonstration:
    """Return one step for each state of a demonstration, as one whose objects moved every time.

    :param env: in the episode of the demonstration, see `reset_as_recorded`.
    :param states: of the simulator before each of its actions, (T, n).
    :param reach: how far an object is from where it stood then along each axis, at most [m].
    :param seed: another one, other layouts.
    """
    executed = recorded.get('executed_actions', recorded['actions'])  # LIBERO's own have one
    if 'seed' not in recorded.attrs:  # things begin there, and not where a reset lays them
        env.set_state(states[0])
    own = recorded.attrs.get('seed', zlib.crc32(np.asarray(executed).tobytes()))
    rng = np.random.default_rng((int(own), seed))
    scattering = Scattering(env, reach, int(rng.integers(2 ** 31)), gap=float(rng.choice(_GAPS)))
    expert, recorder = ExpertPolicy(), DemonstrationRecorder(env)
    targets = finger_targets(np.asarray(executed))
    fingers = [env.model.actuator(name).id for name in FINGERS]
    for step, state in enumerate(states):
        env.set_state(state)
        env.data.ctrl[fingers] = targets[step] * np.array([1.0, -1.0])  # no state has these
        observation = scattering.scatter()
        if step == 0:
            expert.start(env, observation)
        recorder.objects_moved()
        action = expert.act(observation)
        recorder.add(observation, action, action, aim=expert.aim)
    return recorder.finish(**recorded.attrs)


def finger_targets(executed: np.ndarray) -> np.ndarray:
    """Return where the fingers are sent before each of these actions (T, 7), (T,) [m]."""
    targets = np.full(len(executed), _OPENED)
    for step, action in enumerate(executed[:-1], start=1):
        targets[step] = np.clip(targets[step - 1] - _PER_STEP * np.sign(action[6]), 0.0, _OPENED)
    return targets

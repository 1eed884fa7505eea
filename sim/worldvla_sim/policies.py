# SPDX-License-Identifier: Apache-2.0
"""What can play an episode, and the registry that turns `--policy NAME` into it."""

from collections import deque
from collections.abc import Callable
import functools
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation

from worldvla_ros.arm_state import arm_state
from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.named_checkpoints import NAMES, locate_checkpoint
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_sim.libero_env import NO_OP, LiberoEnv
from worldvla_sim.observation import SimObservation, rendered


class EpisodePolicy(Protocol):
    """Anything that plays episodes in process: one action per control step."""

    needs_images: bool  # False lets the runner skip rendering
    needs_wrist: bool  # whether those of the wrist camera are among them
    image_size: int | None  # [px] that it must see; None takes any

    def start(self, env: LiberoEnv, observation: SimObservation) -> None:
        """Begin an episode; experts may keep `env` and read its privileged state."""

    def act(self, observation: SimObservation) -> np.ndarray:
        """Return the next action, (7,) controller input in [-1, 1]."""


class HoldPolicy:
    """Never moves: the baseline that must fail, and a way to look at settled scenes."""

    needs_images = False
    needs_wrist = False
    image_size: int | None = None

    def start(self, env: LiberoEnv, observation: SimObservation) -> None:
        """Nothing to prepare."""

    def act(self, observation: SimObservation) -> np.ndarray:
        """Return the no-op action."""
        return NO_OP


class DriftPolicy:
    """Moves in one random direction, at times with the other gripper command: a mistake.

    In turns with the expert (`collect --policy drift`) it makes recoveries before there is a
    policy that makes mistakes of its own. What it does follows from the scene it is started in.
    """

    needs_images = False
    needs_wrist = False
    image_size: int | None = None
    _TRANSLATION, _ROTATION = 0.35, 0.1  # standard deviations, controller input
    _GRIPPER_TURNS = 0.3  # share of the mistakes that open or close the gripper, too

    def __init__(self) -> None:
        self._action = NO_OP

    def start(self, env: LiberoEnv, observation: SimObservation) -> None:
        """Choose a direction."""
        moment = (round(1e9 * value) % 2 ** 32 for value in observation.ee_position)
        random = np.random.default_rng([*moment, env.steps])
        motion = np.concatenate([random.normal(scale=self._TRANSLATION, size=3),
                                 random.normal(scale=self._ROTATION, size=3)])
        turned = -1.0 if random.random() < self._GRIPPER_TURNS else 1.0
        self._action = np.append(motion, turned * env.last_action[6]).clip(-1.0, 1.0)

    def act(self, observation: SimObservation) -> np.ndarray:
        """Return the same action again."""
        return self._action


class CheckpointPolicy:
    """A WorldVLA checkpoint, as in the published evaluation: whole chunks, open loop.

    The history holds the frames before each executed action, so they are one control period
    apart; an episode starts with a single frame.

    :param path: folder of the checkpoint
    :param execute: actions of a chunk that are executed before the next inference, the policy
        node's `control.replan_steps`; None: the whole chunk
    :param threads: of torch; more than one only where no other worker wants the same cores
    :param device: torch device
    """

    needs_images = True

    def __init__(self, path: str, *, execute: int | None = None, threads: int = 1,
                 device: str = 'cpu') -> None:
        import torch

        from worldvla_ros.policy.policy import WorldVLAPolicy
        torch.set_num_threads(threads)
        self._policy = WorldVLAPolicy.from_pretrained(path, device=device)
        self.description = self._policy.description
        self._execute = execute
        self.image_size: int | None = self._policy.image_size
        self.needs_wrist = self._policy.reads_wrist
        self.also_reads = also_reads(self._policy)
        self._frames: deque[Frame] = deque(maxlen=self._policy.history_length)
        self._actions: deque[np.ndarray] = deque()
        self._instruction = ''
        self._base = np.zeros(3)  # of the robot in the world frame [m]

    def start(self, env: LiberoEnv, observation: SimObservation) -> None:
        """Forget the last episode."""
        self._instruction = env.instruction
        self._base = env.base_position
        self._frames.clear()
        self._actions.clear()

    def act(self, observation: SimObservation) -> np.ndarray:
        """Return the next action of the chunk; infer a new chunk when it is used up."""
        self._frames.append(Frame(
            rendered(observation.agentview), round(observation.time * 1e9),
            rendered(observation.wrist) if self.needs_wrist else None))
        if not self._actions:
            state = arm_state(observation.ee_position - self._base,
                              Rotation.from_quat(observation.ee_quaternion),
                              observation.gripper_positions)
            chunk = self._policy.predict_chunk(Observation(tuple(self._frames),
                                                           self._instruction, state))
            self._actions.extend(chunk.actions[:self._execute])
        return self._actions.popleft()


def _expert() -> EpisodePolicy:
    from worldvla_sim.expert.policy import ExpertPolicy
    return ExpertPolicy()


POLICIES: dict[str, Callable[[], EpisodePolicy]] = {
    'expert': _expert, 'hold': HoldPolicy, 'drift': DriftPolicy}
"""Policies by name. A factory runs in the worker process that plays the episodes."""


def policy_factory(name: str, *, execute: int | None = None, threads: int = 1,
                   device: str = 'cpu') -> Callable[[], EpisodePolicy]:
    """Return what builds a policy: by its name, or from a checkpoint folder.

    :param execute: and the others: see CheckpointPolicy.
    :raises ConfigError: neither a known name nor a folder; lists the names. Or `execute` is not a
        number of actions that the policy's chunks have.
    """
    if name in POLICIES:
        if execute is not None:
            raise ConfigError(f'--execute {execute} is for the chunks of a checkpoint; {name} has '
                              f'none, leave it out')
        return POLICIES[name]
    folder = checkpoint_folder(name)
    horizon = PolicySettings.load(folder / POLICY_FILE).horizon
    if execute is not None and not 1 <= execute <= horizon:
        raise ConfigError(f'--execute must be from 1 to {horizon}, the actions in a chunk of '
                          f'{name}, got {execute}')
    return functools.partial(CheckpointPolicy, str(folder), execute=execute, threads=threads,
                             device=device)


class Reads(Protocol):
    """What settings and policy both say of a checkpoint."""

    @property
    def reads_wrist(self) -> bool:
        """Whether it reads pictures of the wrist camera."""

    @property
    def reads_state(self) -> bool:
        """Whether it reads the state of the arm."""


def also_reads(checkpoint: Reads) -> str:
    """Say what a checkpoint reads beside instruction and third-person camera; '' for nothing."""
    return ' + '.join(name for name, read in (('wrist camera', checkpoint.reads_wrist),
                                              ('arm state', checkpoint.reads_state)) if read)


def absolute_policy(policy: str) -> str:
    """Return what names the same policy in every working folder."""
    return policy if policy in (*POLICIES, *NAMES) else str(Path(policy).absolute())


def checkpoint_folder(policy: str) -> Path:
    """Return the folder of a checkpoint that is given by it or by name.

    A name comes first, as for the policy node: a folder of that name is ./NAME.

    :raises ConfigError: neither a known name nor a folder; lists the names.
    """
    if policy in NAMES:
        return Path(locate_checkpoint(policy))
    if Path(policy).is_dir():
        return Path(policy)
    raise ConfigError(f'unknown policy {policy!r}: neither one of '
                      f'{", ".join((*POLICIES, *NAMES))} nor the folder of a checkpoint')


def checkpoint_name(policy: str) -> str:
    """Return name and fingerprints of a checkpoint; '' for a policy that has none.

    :raises CheckpointError: there is no checkpoint in the folder.
    """
    if policy in POLICIES:
        return ''
    from worldvla_ros.policy.pretrained import fingerprint, fingerprint_beside_weights
    folder = checkpoint_folder(policy)
    return (f'{PolicySettings.load(folder / POLICY_FILE).name}, settings and tokenizers '
            f'{fingerprint_beside_weights(folder)}, weights {fingerprint(folder)}')

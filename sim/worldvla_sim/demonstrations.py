# SPDX-License-Identifier: Apache-2.0
"""Demonstrations in LIBERO's HDF5 format: recorded step by step, and the files of a folder.

A file holds one task: group `data`, in it `demo_0`, `demo_1`, ... Conventions of LIBERO's own
files that are easy to miss: images are upside down, as robosuite renders them (`image[::-1]` is
upright, `image[::-1, ::-1]` is what policies get); gripper actions are -1 open and 1 close. Unlike
LIBERO's converter, index t of `obs` is what the expert saw *before* `actions[t]`.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
from dataclasses import asdict, dataclass, field
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np

from worldvla_ros.errors import ConfigError, SimulationError
from worldvla_ros.recording.demonstration_file import (
    AIMS,
    CHUNKS,
    IMAGES,
    MOVED,
    WRIST_IMAGES,
    ArmTrack,
    write_actions,
    write_arm,
    write_images,
)
from worldvla_ros.whole_files import write_whole
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.observation import SimObservation, rendered

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar('Settings', bound='DataclassInstance')
DEMONSTRATION, FAILURE = '.hdf5', '.failed'  # endings of what is recorded, or was tried in vain


@dataclass(frozen=True, eq=False)
class Seen:
    """What the robot saw and felt at T instants."""

    agentview: np.ndarray  # (T, H, W, 3) uint8 RGB, rotated as policies see it
    wrist: np.ndarray | None  # likewise, if it was recorded
    joint_positions: np.ndarray  # (T, 7) float64 [rad]
    arm: ArmTrack  # in the world frame

    @classmethod
    def stack(cls, observations: Sequence[SimObservation]) -> 'Seen':
        """Put observations one after the other."""
        return cls(
            agentview=np.stack([rendered(one.agentview) for one in observations]),
            wrist=(None if observations[0].wrist is None
                   else np.stack([rendered(one.wrist) for one in observations])),
            joint_positions=np.stack([one.joint_positions for one in observations]),
            arm=ArmTrack(np.stack([one.gripper_positions for one in observations]),
                         np.stack([one.ee_position for one in observations]),
                         np.stack([one.ee_quaternion for one in observations])))


@dataclass(eq=False)
class Demonstration:
    """One successful episode of the expert: T control steps."""

    suite: str
    task: int
    instruction: str
    actions: np.ndarray  # (T, 7) float64 clean expert actions: the labels
    executed_actions: np.ndarray  # (T, 7) float64 what was executed, noise included
    expert_acted: np.ndarray  # (T,) bool; False where a policy did, see `dagger`
    states: np.ndarray  # (T, 1 + nq + nv) float64 before each action
    seen: Seen  # before each action
    chunks: np.ndarray | None = None  # (T, K, 7) float64, see CHUNKS; None: not asked for
    moved: np.ndarray | None = None  # (T,) bool, see MOVED; None: never
    aims: np.ndarray | None = None  # (T, 5) float64, see AIMS; None: not noted
    attributes: dict[str, Any] = field(default_factory=dict)  # seed, noise, assets, ...

    def __len__(self) -> int:
        return len(self.actions)


class DemonstrationRecorder:
    """Collects one episode step by step."""

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env
        self._observations: list[SimObservation] = []
        self._actions: list[np.ndarray] = []
        self._executed: list[np.ndarray] = []
        self._expert_acted: list[bool] = []
        self._states: list[np.ndarray] = []
        self._chunks: dict[int, np.ndarray] = {}  # by step
        self._moved: set[int] = set()  # steps
        self._aims: list[np.ndarray] = []  # of every step, or of none

    def add(self, observation: SimObservation, action: np.ndarray, executed: np.ndarray, *,
            expert_acted: bool = True, chunk: np.ndarray | None = None,
            aim: np.ndarray | None = None) -> None:
        """Note what was seen, what the expert would do, and what is about to be executed.

        :param chunk: (K, 7), what the expert would do in the next K steps, where it was asked.
        :param aim: (3,), what the expert's action is for, world frame [m]; at all steps or none.
        """
        if aim is not None:
            self._aims.append(np.concatenate([self._env.in_agentview(aim),
                                              aim - observation.ee_position]))
        if chunk is not None:
            self._chunks[len(self._actions)] = chunk
        self._observations.append(observation)
        self._actions.append(action)
        self._executed.append(executed)
        self._expert_acted.append(expert_acted)
        self._states.append(self._env.state())

    def objects_moved(self) -> None:
        """Note that what the next step sees does not follow from the one before."""
        self._moved.add(len(self._actions))

    def finish(self, **attributes: Any) -> Demonstration:
        """Return the episode; `attributes` say how it was made."""
        return Demonstration(
            suite=self._env.suite, task=self._env.task, instruction=self._env.instruction,
            actions=np.stack(self._actions), executed_actions=np.stack(self._executed),
            expert_acted=np.array(self._expert_acted, dtype=bool),
            states=np.stack(self._states), seen=Seen.stack(self._observations),
            chunks=self._stacked_chunks(),
            moved=(np.isin(np.arange(len(self._actions)), list(self._moved)) if self._moved
                   else None),
            aims=np.stack(self._aims) if self._aims else None,
            attributes=attributes | {'assets': self._env.assets,
                                     'base_position': self._env.base_position})

    def _stacked_chunks(self) -> np.ndarray | None:
        if not self._chunks:
            return None
        chunks = np.full((len(self._actions), *next(iter(self._chunks.values())).shape), np.nan)
        for step, chunk in self._chunks.items():
            chunks[step] = chunk
        return chunks


def keep_to_settings(path: Path, settings: Settings, read: Callable[[dict[str, Any]], Settings],
                     how: str) -> None:
    """Note in a file what its folder is made with, or compare, so that a resumed run mixes none.

    :param read: undoes `asdict`.
    :param how: 'made' or 'rendered'.
    :raises ConfigError: the folder holds some of other settings, or cannot be used.
    """
    wanted = json.dumps(asdict(settings)) + '\n'
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = path.read_text() if path.exists() else None
        if earlier == wanted:
            return
        if (earlier is not None and _holds_demonstrations(path.parent)
                and read(json.loads(earlier)) != settings):
            raise ConfigError(f'{path.parent} holds demonstrations {how} with other settings '
                              f'({earlier.strip()}); name another folder')
        write_whole(path, lambda draft: draft.write_text(wanted))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f'cannot use the folder {path.parent}: {error}') from error


def _holds_demonstrations(folder: Path) -> bool:
    """Whether there are files of demonstrations, or of attempts, at any depth."""
    return any(path.suffix in (DEMONSTRATION, FAILURE) for path in folder.rglob('*'))


def write_demonstration(parent: h5py.Group, name: str, demo: Demonstration) -> None:
    """Write one demonstration as the group `name` in LIBERO's layout."""
    group = parent.create_group(name)
    write_actions(group, demo.actions, demo.executed_actions)
    group.create_dataset('expert_acted', data=demo.expert_acted.astype(np.uint8))
    group.create_dataset('states', data=demo.states)
    if demo.chunks is not None:
        group.create_dataset(CHUNKS, data=demo.chunks)
    if demo.moved is not None:
        group.create_dataset(MOVED, data=demo.moved.astype(np.uint8))
    if demo.aims is not None:
        group.create_dataset(AIMS, data=demo.aims)
    write_seen(group, demo.seen)
    group.attrs['init_state'] = demo.states[0]
    group.attrs['problem_info'] = json.dumps({'language_instruction': demo.instruction,
                                              'suite': demo.suite, 'task': demo.task})
    for key, value in demo.attributes.items():
        group.attrs[key] = value


def write_seen(group: h5py.Group, seen: Seen) -> None:
    """Write `obs` and `robot_states` of a demonstration."""
    write_arm(group, seen.arm)
    group.create_dataset('obs/joint_states', data=seen.joint_positions)
    write_images(group, IMAGES, seen.agentview)
    if seen.wrist is not None:
        write_images(group, WRIST_IMAGES, seen.wrist)


@contextlib.contextmanager
def open_demonstrations(path: Path) -> Iterator[h5py.Group]:
    """Open a demonstration file for reading and give its group `data`.

    :raises SimulationError: the file is missing, damaged or of another kind.
    """
    try:
        with h5py.File(path, 'r') as file:
            yield file['data']
    except (OSError, KeyError) as error:
        raise SimulationError(f'{path} is not a readable demonstration file: {error}') from error

# SPDX-License-Identifier: Apache-2.0
"""Read demonstrations in LIBERO's HDF5 format: our own recordings and the official files.

One file holds one task: `data/demo_N/{actions, dones, obs/agentview_rgb, ...}`. Images are stored
as robosuite renders them, upside down, and are turned by 180 degrees here, which is what policies
are given. Our recordings add `executed_actions`: noise injected into the expert included, so they,
not `actions`, lead from frame t to frame t + 1.

Frame t of an `Episode` is what was seen before action t, as in our recordings and in files that
OpenVLA's or WorldVLA's scripts replayed. LIBERO's own files hold at index t what was seen *after*
action t; they are read one step shorter, without the first action and the last frame.

LIBERO gives the pose of the hand in the world frame. Our recordings say where the robot's base
stands (`base_position`); in LIBERO's own files that follows from the kind of scene. Replayed files
say nothing of it, so their states are not known.
"""

from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import re
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldvla_ros.arm_state import arm_state
from worldvla_ros.datatypes import ACTION_DIM
from worldvla_ros.recording.demonstration_file import (
    AIM_DIM,
    AIMS,
    CHUNKS,
    FILE_ENDING,
    IMAGES,
    MOVED,
    WRIST_IMAGES,
    demonstration_names,
)
from worldvla_ros.training.episodes import Episode
from worldvla_ros.training.failures import DatasetError

FRAMES, WRIST_FRAMES = f'obs/{IMAGES}', f'obs/{WRIST_IMAGES}'
ROBOT_STATE_DIM = 9  # two fingers, position, quaternion; of `robot_states`
_ARM_JOINTS = slice(1, 8)  # of `states`: the time, then the positions, the robot's first

ROBOT_BASES = {
    'libero_floor_manipulation': (-0.6, 0.0, 0.0),
    'libero_tabletop_manipulation': (-0.66, 0.0, 0.912),
    'libero_kitchen_tabletop_manipulation': (-0.66, 0.0, 0.912),
    'libero_living_room_tabletop_manipulation': (-0.51, 0.0, 0.42),
    'libero_study_tabletop_manipulation': (-0.75, 0.0, 0.912)}
"""Where the robot's base stands in LIBERO's scenes, world frame [m]; a test asks the simulator."""


def demonstration_files(folder: Path, task: str = '*') -> list[Path]:
    """Return the HDF5 files below a folder, or the one file itself, sorted by name.

    :param task: pattern (as of a shell) of the tasks whose files are wanted.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob(task + FILE_ENDING))
    if not files:
        raise DatasetError(f'no demonstrations ({task}{FILE_ENDING}) in {folder}; record some '
                           'with `python -m worldvla_sim.collect`, or give the folder of a suite')
    return files


def read_episodes(path: Path, folder: Path | None = None, *, wrist: bool = False
                  ) -> Iterator[Episode]:
    """Yield the demonstrations of one file in numeric order; DatasetError where it is damaged.

    :param folder: see `task_name`.
    :param wrist: read the wrist camera, too; DatasetError where it was not recorded.
    """
    task = task_name(path, folder)
    with _opened(path) as data:
        for name in _names(data, path):
            with _named(path, name):
                episode = _read_episode(data[name], name, task, wrist)
            yield episode


def read_episode(path: Path, name: str) -> Episode:
    """Return one demonstration of a file; DatasetError where it is damaged or not there."""
    with _opened(path) as data:
        names = _names(data, path)
        if name not in names:
            raise DatasetError(f'{path} has {len(names)} demonstrations, {names[0]} to '
                               f'{names[-1]}; there is no {name}')
        with _named(path, name):
            return _read_episode(data[name], name, task_name(path), wrist=False)


def episode_actions(path: Path, *, failed: bool = True
                    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return `recorded_actions` of each demonstration of a file, without reading its frames.

    :param failed: those of failed demonstrations, too.
    """
    with _opened(path) as data:
        actions = {}
        for name in _names(data, path):
            with _named(path, name):
                recorded = recorded_actions(data[name])
                if failed or _succeeded(data[name]):
                    actions[name] = recorded
    return actions


def first_frames(path: Path, camera: str = FRAMES) -> dict[str, NDArray[np.uint8]]:
    """Return the first frame (H, W, 3) of each demonstration of a file, as it is stored.

    :param camera: FRAMES or WRIST_FRAMES.
    """
    frames = {}
    with _opened(path) as data:
        for name in _names(data, path):
            with _named(path, name):
                frames[name] = _dataset(data[name], camera, (None, None, None, 3))[0]
    return frames


def recorded_actions(group: h5py.Group) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the actions (T, 7) of a demonstration that is open: labels, and what was executed."""
    with _named(Path(group.file.filename), Path(group.name).name):
        lag = observation_lag(group)
        labels = _array(group, 'actions', (None, ACTION_DIM)).astype(np.float64)
        if len(labels) <= lag:
            raise _Unreadable('it has no steps')
        executed = (_array(group, 'executed_actions', labels.shape).astype(np.float64)
                    if 'executed_actions' in group else labels)
    return labels[lag:], executed[lag:]


def objects_moved(group: h5py.Group) -> NDArray[np.bool_] | None:
    """Return before which steps (T,) of a demonstration objects were moved, see MOVED, or None."""
    if MOVED not in group:
        return None
    moved: NDArray[np.bool_] = _array(group, MOVED, (len(group['actions']),)) > 0
    return moved[observation_lag(group):]


def observation_lag(group: h5py.Group) -> int:
    """Return by how many steps `obs` and `robot_states` are ahead of `actions` and `states`.

    0 or, in what LIBERO's converter wrote, 1. The arm's joints tell: they are in `obs` and in the
    simulator's `states`, which every layout takes before the action.
    """
    if 'executed_actions' in group:  # our own recordings
        return 0
    if 'states' not in group or 'obs/joint_states' not in group:
        return int('macros_image_convention' in group.parent.attrs)  # the converter's mark
    joints = _array(group, 'states', (None, None))[:, _ARM_JOINTS]
    seen = _array(group, 'obs/joint_states', joints.shape)
    same, next_ = np.abs(seen[1:] - joints[1:]), np.abs(seen[:-1] - joints[1:])
    return int(next_.sum() < same.sum())


def task_name(path: Path, folder: Path | None = None) -> str:
    """Return what splits and tables call the demonstrations of a file.

    :param folder: that tasks are named relative to, so that files of two suites or of two rounds
        of recording stay apart; the file's own folder if it is None or the file itself.
    """
    root = folder if folder is not None and folder.is_dir() else path.parent
    return str(path.relative_to(root)).removesuffix(FILE_ENDING)


def _names(data: h5py.Group, path: Path) -> list[str]:
    names = demonstration_names(data)
    if not names:
        raise DatasetError(f'{path} holds no demonstration: no data/demo_N in it')
    return names


@contextlib.contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except _Unreadable as error:
        raise DatasetError(f'{path}, {name}: {error}; record the demonstration again, or delete '
                           'it from the file') from error


class _Unreadable(Exception):
    """Says what is wrong within a demonstration; `_named` adds which one."""


def _read_episode(group: h5py.Group, name: str, task: str, wrist: bool) -> Episode:
    problem = _problem_info(group)
    actions, executed = recorded_actions(group)
    steps = len(actions)
    stored = len(group['actions'])

    def images(key: str) -> NDArray[np.uint8]:
        shape = stored, None, None, 3
        return np.ascontiguousarray(_array(group, key, shape)[:steps, ::-1, ::-1])
    states = _states(group, problem, stored)
    return Episode(name, task, _instruction(group, problem, task),
                   frames=images(FRAMES), actions=actions,
                   executed=executed, success=_succeeded(group),
                   states=None if states is None else states[:steps],
                   wrist=images(WRIST_FRAMES) if wrist else None,
                   chunks=(_array(group, CHUNKS, (stored, None, ACTION_DIM))[:steps]
                           if CHUNKS in group else None),
                   moved=objects_moved(group),
                   aims=(_array(group, AIMS, (stored, AIM_DIM))[:steps]
                         if AIMS in group else None))


def _succeeded(group: h5py.Group) -> bool:
    return bool(_array(group, 'dones', (len(group['actions']),))[-1])


def _array(group: h5py.Group, key: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    array: NDArray[Any] = _dataset(group, key, shape)[:]
    return array


def _dataset(group: h5py.Group, key: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """Return what is stored under a key, of this shape; None stands for any length."""
    found = group.get(key)
    if not isinstance(found, h5py.Dataset):
        raise _Unreadable(f'no {key} in it')
    there = found.shape
    if len(there) != len(shape) or any(
            wanted not in (None, got) for wanted, got in zip(shape, there, strict=True)):
        expected = ', '.join('any' if length is None else str(length) for length in shape)
        raise _Unreadable(f'expected {key} of shape ({expected}), got {there}')
    return found


def _states(group: h5py.Group, problem: dict[str, Any], steps: int) -> NDArray[np.float64] | None:
    """Return the states of the arm (T, 7), None where the file does not tell them."""
    base = group.attrs.get('base_position',
                           ROBOT_BASES.get(str(problem.get('problem_name', '')).lower()))
    if base is None or 'robot_states' not in group:
        return None
    fingers, positions, quaternions = np.split(
        _array(group, 'robot_states', (steps, ROBOT_STATE_DIM)), (2, 5), axis=1)
    return arm_state(positions - base, Rotation.from_quat(quaternions), fingers)


def _attribute(group: h5py.Group, name: str, default: str) -> str:
    """Return what a file says of a demonstration, or, as the official ones, once in `data`."""
    said: str = group.attrs.get(name, group.parent.attrs.get(name, default))
    return said


def _problem_info(group: h5py.Group) -> dict[str, Any]:
    """Return what a file says of its task."""
    text = _attribute(group, 'problem_info', '{}')
    try:
        problem = json.loads(text)
    except (TypeError, ValueError) as error:
        raise _Unreadable(f'problem_info is no JSON: {error}') from error
    if not isinstance(problem, dict):
        raise _Unreadable(f'expected a JSON object as problem_info, got {text!r}')
    return problem


def _instruction(group: h5py.Group, problem: dict[str, Any], task: str) -> str:
    """Return the sentence that policies are evaluated with.

    LIBERO's evaluation reads it off the name of the task's file, and so does the public training
    code. The text within, which LIBERO copies into its demonstrations, is another one for 30 of
    the 40 tasks. Where no such name is known that text is all there is, as a list of letters in
    some; replayed files have neither, but are named as the task is.
    """
    named = _attribute(group, 'bddl_file_name', '')
    if named or not problem:
        stem = Path(named).stem if named else Path(task).name
        return re.sub(r'^[A-Z_]+SCENE\d+_', '', stem).replace('_', ' ')
    instruction = problem.get('language_instruction', '')
    letters = instruction if isinstance(instruction, list) else [instruction]
    if not all(isinstance(part, str) for part in letters):
        raise _Unreadable(f'expected text as language_instruction, got {instruction!r}')
    if not (text := ''.join(letters).strip()):
        raise _Unreadable('no language_instruction in problem_info')
    return text.strip('"')


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.Group]:
    try:
        with h5py.File(path, 'r') as file:
            yield file['data']
    except (OSError, KeyError, ValueError) as error:
        raise DatasetError(f'{path} is no complete demonstration file: {error}') from error

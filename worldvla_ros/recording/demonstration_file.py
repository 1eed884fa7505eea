# SPDX-License-Identifier: Apache-2.0
"""Write demonstrations in LIBERO's HDF5 layout, which `training.libero_hdf5` reads.

A file holds one task and is called `<instruction_with_underscores>_demo.hdf5`: group `data`, in it
`demo_0`, `demo_1`, ... Images are stored as robosuite renders them, upside down. The simulator's
recordings (`worldvla_sim.demonstrations`) share what is here.
"""

from collections.abc import Iterable, Iterator
import contextlib
from dataclasses import dataclass
import errno
import json
import os
from pathlib import Path
import re
import shutil

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from worldvla_ros.errors import RecordingError
from worldvla_ros.recording.timeline import RecordedEpisode
from worldvla_ros.whole_files import flush

FILE_ENDING = '_demo.hdf5'  # of LIBERO's files; parts of a recording under way end otherwise
_LONGEST_STEM = 60  # characters: of four bytes each they still make a name of a file
IMAGES, WRIST_IMAGES = 'agentview_rgb', 'eye_in_hand_rgb'  # below `obs`
CHUNKS = 'chunk_labels'
"""(T, K, 7): what the expert would have done in K steps from each step where a policy had the arm
and the expert was asked; NaN at other steps. Where the expert had the arm `actions` tell."""
MOVED = 'objects_moved'
"""(T,) uint8: 1 at steps before which objects were moved by hand, so that they do not follow from
the ones before. Not there where that never was."""


AIMS = 'aims'
"""(T, 5): what the expert's action is for: a grasp, or the place for what is held. Where it is in
`agentview_rgb` as policies see it, in shares of width and height from the upper left corner, which
are outside of [0, 1], or NaN, where the picture does not show it; and how far from the grip site,
x, y and z [m] along the axes of the robot's base."""
AIM_DIM = 5


@dataclass(frozen=True, eq=False)
class ArmTrack:
    """The arm at T instants."""

    gripper_positions: NDArray[np.float64]  # (T, 2) [m]; the fingers count in opposite directions
    ee_positions: NDArray[np.float64]  # (T, 3) [m] in the frame that `base_position` is in
    ee_quaternions: NDArray[np.float64]  # (T, 4) xyzw in the same frame


@contextlib.contextmanager
def whole_file(path: Path, *, add: bool = False) -> Iterator[h5py.File]:
    """Write an HDF5 file beside its place and rename it when it is complete.

    :param add: begin with what the file holds, if it exists.
    :raises RecordingError: the disk is full or the folder cannot be written, or what is to be
        added to is no HDF5 file; the file is as it was.
    """
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if add and path.exists():
            shutil.copyfile(path, temporary)
        with h5py.File(temporary, 'a' if add else 'w') as file:
            yield file
        flush(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # h5py reports a failed close as RuntimeError
        full = getattr(error, 'errno', None) == errno.ENOSPC or 'No space left' in str(error)
        advice = 'the disk is full; free space and run again, what is whole is kept'
        raise RecordingError(f'cannot write {path}: {advice if full else error}') from error
    finally:
        temporary.unlink(missing_ok=True)


def write_images(group: h5py.Group, name: str, images: NDArray[np.uint8]) -> None:
    """Write pictures (T, H, W, 3) as policies see them; IMAGES or WRIST_IMAGES."""
    group.create_dataset(f'obs/{name}', data=images[:, ::-1, ::-1], compression='gzip',
                         compression_opts=1, chunks=(1, *images.shape[1:]))


def write_arm(group: h5py.Group, arm: ArmTrack) -> None:
    """Write `robot_states`, and what LIBERO's own files have of the arm below `obs`."""
    rotation_vectors = Rotation.from_quat(arm.ee_quaternions).as_rotvec()
    arrays = {
        'robot_states': np.hstack([arm.gripper_positions, arm.ee_positions, arm.ee_quaternions]),
        'obs/ee_pos': arm.ee_positions, 'obs/ee_ori': rotation_vectors,
        'obs/ee_states': np.hstack([arm.ee_positions, rotation_vectors]),
        'obs/gripper_states': arm.gripper_positions}
    for key, array in arrays.items():
        group.create_dataset(key, data=array)


def write_actions(group: h5py.Group, actions: NDArray[np.float64],
                  executed: NDArray[np.float64]) -> None:
    """Write labels and executed actions, (T, 7) each, of an episode that succeeded."""
    last = np.zeros(len(actions), dtype=np.uint8)
    last[-1] = 1
    for key, array in (('actions', actions), ('executed_actions', executed), ('dones', last),
                       ('rewards', last)):
        group.create_dataset(key, data=array)
    group.attrs['num_samples'] = len(actions)


def demonstration_file(folder: Path, instruction: str) -> Path:
    """Return the file of a task; the sentence itself is in each demonstration.

    :raises RecordingError: there is no letter and no digit in the sentence.
    """
    stem = re.sub(r'\W+', '_', instruction.lower()).strip('_')[:_LONGEST_STEM]
    if not stem:
        raise RecordingError(f'expected a sentence as instruction, got {instruction!r}')
    return folder / f'{stem}{FILE_ENDING}'


def demonstration_names(data: Iterable[str]) -> list[str]:
    """Return the names of the demonstrations in group `data` in numeric order; no others."""
    numbers = {name: int(match[1]) for name in data
               if (match := re.fullmatch(r'demo_([0-9]+)', name))}
    return sorted(numbers, key=lambda name: numbers[name])


def add_demonstration(folder: Path, instruction: str, episode: RecordedEpisode
                      ) -> tuple[Path, str]:
    """Add an episode that succeeded to the file of its task; return the file and its name there.

    :raises RecordingError: as `demonstration_file` and `whole_file`, or the file holds something
        else; it is as it was.
    """
    path = demonstration_file(folder, instruction)
    with whole_file(path, add=True) as file:
        try:
            group = _next_group(file)
            _write_episode(group, episode)
        except (KeyError, TypeError, ValueError) as error:  # of h5py: what is there does not fit
            raise RecordingError(f'cannot add to {path}: {error}') from error
        group.attrs['problem_info'] = json.dumps({'language_instruction': instruction})
        return path, group.name.rpartition('/')[2]


def _next_group(file: h5py.File) -> h5py.Group:
    data = file.require_group('data')
    names = demonstration_names(data)
    number = int(names[-1].removeprefix('demo_')) + 1 if names else 0
    return data.create_group(f'demo_{number}')


def _write_episode(group: h5py.Group, episode: RecordedEpisode) -> None:
    write_actions(group, episode.actions, episode.actions)
    write_images(group, IMAGES, episode.frames)
    if episode.wrist is not None:
        write_images(group, WRIST_IMAGES, episode.wrist)
    if (episode.positions is not None and episode.quaternions is not None
            and episode.fingers is not None):
        # LIBERO's files have two fingers; what counts of any gripper is how far it is open.
        opening = np.abs(episode.fingers).sum(1, keepdims=True)
        write_arm(group, ArmTrack(opening * [0.5, -0.5], episode.positions, episode.quaternions))
    group.attrs['base_position'] = np.zeros(3)  # positions are in the frame of the base

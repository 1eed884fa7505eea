# SPDX-License-Identifier: Apache-2.0
"""A Panda with lighter looks: same kinematics, collision, inertia and actuators, fewer triangles.

Three quarters of the time to render LIBERO without a GPU goes into the robot's 168 000 triangles.
The light robot draws fewer than 20 000, made from the user's own robosuite installation on first
use and kept in the cache; nothing is redistributed.  Select it with `robots=['LightPanda']` after
`register_light_robot()`.
"""

import functools
import hashlib
from pathlib import Path
import struct
import tempfile
from typing import Any

import numpy as np

from worldvla_ros.errors import AssetError
from worldvla_sim.assets.cache import user_cache, writable_cache

# Edges of the clustering grid [m]: smaller details vanish, smaller cells cost frames per second.
ARM_CELL = 0.014
HAND_CELL = 0.010
MOUNT_CELL = 0.025  # the pedestal is far from every camera
_FEWEST_FACES = 700  # smaller meshes, such as the fingers, are kept as they are
_VERSION = 1  # of the decimation; part of the cache's file names
_STL_RECORD = np.dtype([('normal', '<3f4'), ('corners', '<9f4'), ('attribute', '<u2')])
_STL_HEADER = 84


@functools.cache
def register_light_robot() -> None:
    """
    Make `LightPanda` known to robosuite, on the mount and on the ground as LIBERO's tasks need it.

    :raises AssetError: the lighter meshes cannot be made or written.  Raised when an environment
        is built, which is when the meshes are made.
    """
    from libero.libero.envs.robots import MountedPanda, OnTheGroundPanda
    from robosuite.models.grippers import GRIPPER_MAPPING, PandaGripper
    from robosuite.models.mounts import MOUNT_MAPPING, RethinkMount
    from robosuite.robots import ROBOT_CLASS_MAPPING
    from robosuite.robots.single_arm import SingleArm

    def lighter(name: str, base: Any, cell: float, **constants: str) -> Any:
        def build(self: Any, idn: int = 0) -> None:
            base.__init__(self, idn=idn)
            lighten(self, cell)
        return type(base)(name, (base,), {'__init__': build, **constants})

    MOUNT_MAPPING['LightRethinkMount'] = lighter('LightRethinkMount', RethinkMount, MOUNT_CELL)
    GRIPPER_MAPPING['LightPandaGripper'] = lighter('LightPandaGripper', PandaGripper, HAND_CELL)
    # Creating a robot class registers its model; the mapping names the class that controls it.
    lighter('MountedLightPanda', MountedPanda, ARM_CELL,
            default_mount='LightRethinkMount', default_gripper='LightPandaGripper')
    lighter('OnTheGroundLightPanda', OnTheGroundPanda, ARM_CELL,
            default_gripper='LightPandaGripper')
    ROBOT_CLASS_MAPPING.update(MountedLightPanda=SingleArm, OnTheGroundLightPanda=SingleArm)


def lighten(model: Any, cell: float) -> None:
    """
    Replace the files of a robosuite model's visual meshes by lighter ones, in place.

    :param model: robosuite model (arm, gripper or mount) with its XML tree.
    :param cell: edge of the clustering grid [m].
    """
    users: dict[str, set[str]] = {}
    for geom in model.worldbody.iter('geom'):
        if geom.get('mesh'):
            users.setdefault(geom.get('mesh'), set()).add(geom.get('group'))
    for mesh in model.asset.findall('mesh'):
        if users.get(mesh.get('name')) == {'1'}:
            mesh.set('file', str(light_mesh_file(Path(mesh.get('file')), cell)))
            mesh.set('inertia', 'shell')  # a clustered mesh need not enclose a volume


def light_mesh_file(source: Path, cell: float) -> Path:
    """Return the lighter copy of a mesh file, made on first use; `source` itself when small."""
    status = source.stat()
    key = f'{_VERSION} {source} {status.st_size} {status.st_mtime_ns} {cell}'
    name = f'light-robot/{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.stl'
    for root in (user_cache, lambda: writable_cache(user_cache())):
        if _is_whole(target := root() / name):
            return target
    vertices, faces = read_mesh(source)
    if len(faces) >= _FEWEST_FACES:
        # At least five cells along a part, so that small parts keep a shape.
        vertices, faces = cluster(vertices, faces, min(cell, np.ptp(vertices, axis=0).max() / 5))
    _write_stl(target, vertices[faces])
    return target


def cluster(
    vertices: np.ndarray, faces: np.ndarray, cell: float,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Merge all vertices within a cubic cell into their mean and drop faces that collapse.

    :param vertices: (N, 3) float64 [m].
    :param faces: (M, 3) int indices.
    :param cell: edge of a cell [m].
    :return: fewer vertices and faces of the same kind.
    """
    cells = np.floor((vertices - vertices.min(axis=0)) / cell + 0.5).astype(np.int64)
    _, owner = np.unique(cells, axis=0, return_inverse=True)
    owner = owner.ravel()
    sums = np.zeros((owner.max() + 1, 3))
    np.add.at(sums, owner, vertices)
    means = sums / np.bincount(owner)[:, None]
    merged = owner[faces]
    first, second, third = merged.T
    merged = merged[(first != second) & (second != third) & (third != first)]
    _, kept = np.unique(np.sort(merged, axis=1), axis=0, return_index=True)
    return means, merged[np.sort(kept)]


def read_mesh(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices (N, 3) float64 [m] and triangles (M, 3) of an OBJ or a binary STL file."""
    if path.suffix.lower() == '.obj':
        return _read_obj(path)
    records = np.frombuffer(path.read_bytes()[_STL_HEADER:], dtype=_STL_RECORD)
    corners = records['corners'].reshape(-1, 3).astype(np.float64)
    return corners, np.arange(len(corners)).reshape(-1, 3)


def _read_obj(path: Path) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces = [], []
    for line in path.read_text(errors='replace').splitlines():
        if line.startswith('v '):
            vertices.append(line.split()[1:4])
        elif line.startswith('f '):
            corner = [int(part.split('/')[0]) for part in line.split()[1:]]
            corner = [k - 1 if k > 0 else len(vertices) + k for k in corner]
            faces += [(corner[0], corner[k], corner[k + 1]) for k in range(1, len(corner) - 1)]
    return np.array(vertices, dtype=np.float64), np.array(faces, dtype=np.int64)


def _write_stl(target: Path, triangles: np.ndarray) -> None:
    """Write (M, 3, 3) triangles [m] in one step, so that no reader sees half a file."""
    records = np.zeros(len(triangles), dtype=_STL_RECORD)
    records['corners'] = triangles.reshape(-1, 9)
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    records['normal'] = normals / np.maximum(lengths, 1e-12)
    content = b'\0' * 80 + struct.pack('<I', len(records)) + records.tobytes()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix='.') as scratch:
            written = Path(scratch, target.name)
            written.write_bytes(content)
            written.replace(target)
    except OSError as error:
        raise AssetError(f'cannot write {target}: {error.strerror}; free space there, set '
                         'XDG_CACHE_HOME to another folder, or use the full robot') from error


def _is_whole(path: Path) -> bool:
    """Tell whether an STL file exists and is as long as its header says."""
    try:
        size = path.stat().st_size
        with path.open('rb') as file:
            count: int = struct.unpack('<I', file.read(_STL_HEADER)[80:])[0]
    except (OSError, struct.error):
        return False
    return size == _STL_HEADER + count * _STL_RECORD.itemsize

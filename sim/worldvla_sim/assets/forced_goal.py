# SPDX-License-Identifier: Apache-2.0
"""Put a task's objects where its goal wants them: the predicates must then hold, with any assets.

Objects are lowered onto their place in the pose they rest in and then left to the physics, so a
region at the wrong height, a compartment that is too small or a shelf that lets a bottle roll off
shows up as a failure.
"""

from collections.abc import Iterator

import mujoco
import numpy as np

from worldvla_ros.errors import SimulationError
from worldvla_sim.libero_env import NO_OP, LiberoEnv

_STEP = 0.001  # [m] by which an object is lowered
_START = 0.015  # [m] above the lower end of a region that an object goes into
_DROP = 0.15  # [m] above a place that an object goes onto
_SPREAD = 0.042  # [m] offset of each of two objects that share a place
# What LIBERO's predicates count as open, closed and on, well inside their limits.
_DRAWER_OPEN, _DRAWER_CLOSED, _DOOR_CLOSED, _KNOB_ON = -0.15, 0.005, 0.0, 1.0


def force_goal(env: LiberoEnv, settle_steps: int = 20) -> bool:
    """
    Move everything to a goal state, let it settle, and return LIBERO's verdict.

    :param env: an environment that has been reset; its scene is changed.
    :param settle_steps: no-op control steps before the verdict.
    """
    for predicate, name, *_ in sorted(env.goal, key=len):  # joints first, then the objects
        if predicate in ('open', 'close', 'turnon'):
            _set_joint(env, predicate, name)
    mujoco.mj_forward(env.model, env.data)
    places = [goal[2] for goal in env.goal if len(goal) == 3]
    for index, goal in enumerate(goal for goal in env.goal if len(goal) == 3):
        sharing = places.count(goal[2]) > 1
        _place(env, *goal, offset=(2 * (index % 2) - 1) * _SPREAD * sharing)
    for _ in range(settle_steps):
        env.step(NO_OP)
    return env.success


def _set_joint(env: LiberoEnv, predicate: str, name: str) -> None:
    """Set the joint of the drawer, door or knob that a predicate speaks of."""
    joint = {
        'turnon': f'{name}_button', 'microwave_1': f'{name}_microjoint',
    }.get(predicate if predicate == 'turnon' else name, name.replace('_region', '_level'))
    if predicate == 'close':
        value = _DOOR_CLOSED if joint.endswith('microjoint') else _DRAWER_CLOSED
    else:
        value = _KNOB_ON if predicate == 'turnon' else _DRAWER_OPEN
    env.data.joint(joint).qpos[0] = value


def _place(env: LiberoEnv, predicate: str, name: str, place: str, offset: float) -> None:
    """Lower an object in its present attitude until it touches something."""
    model, data = env.model, env.data
    qpos, qvel = data.joint(f'{name}_joint0').qpos, data.joint(f'{name}_joint0').qvel
    qvel[:] = 0
    middle, axes, down = _target(env, place)
    if predicate == 'in' and 'caddy' in place:
        fixture = data.body(f'{place.split("_1_")[0]}_1_main').xquat
        qpos[3:] = fixture  # the book goes in parallel to the walls
    if 'rack' in place:
        qpos[:3] = middle - 0.06 * down + 0.01 * axes[2]  # foot at the stopper, axis up the slope
        mujoco.mju_mat2Quat(qpos[3:], np.column_stack(
            [axes[0], np.cross(axes[2], axes[0]), axes[2]]).ravel())
    else:
        mujoco.mj_forward(model, data)
        low, high = _bounds(env, name)
        shift = middle - data.body(f'{name}_main').xpos
        if predicate == 'in':
            extent = np.abs(axes @ env.model.site(place).size)
            shift = middle - (low + high) / 2
            shift[2] = middle[2] - extent[2] + _START - low[2]
        else:
            shift[2] = middle[2] + _DROP - low[2]
        shift[0] += offset
        qpos[:3] += shift
    for _ in range(round(0.3 / _STEP)):
        mujoco.mj_forward(model, data)
        if _touches(env, name):
            return
        qpos[:3] += _STEP * down
    raise SimulationError(f'{env}: {name} meets nothing below {place}')


def _target(env: LiberoEnv, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the middle (3,) [m], the axes (3, 3) and the way down (3,) of a goal's place."""
    truth, down = env.privileged(), np.array([0.0, 0.0, -1.0])
    if place in truth.bodies:
        return truth.bodies[place][0], np.eye(3), down
    middle, axes = truth.sites[place]
    axes = axes.T  # rows: the region's x, y and z
    if 'rack' in place:
        down = axes[1]  # the region's y points into the shelf
    return middle, axes if 'rack' in place else axes.T, down


def _geoms(env: LiberoEnv, name: str) -> Iterator[int]:
    """Yield the object's geoms that touch."""
    body = env.model.body(f'{name}_main').id
    for geom in range(env.model.ngeom):
        owner = env.model.geom_bodyid[geom]
        while owner > body:
            owner = env.model.body_parentid[owner]
        if owner == body and env.model.geom_contype[geom]:
            yield geom


def _bounds(env: LiberoEnv, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper corner of the object's collision geoms in the world [m]."""
    corners = []
    signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
    for geom in _geoms(env, name):
        box = env.model.geom_aabb[geom]
        rotation = env.data.geom_xmat[geom].reshape(3, 3)
        corners.append((box[:3] + signs * box[3:]) @ rotation.T + env.data.geom_xpos[geom])
    points = np.concatenate(corners)
    return points.min(axis=0), points.max(axis=0)


def _touches(env: LiberoEnv, name: str) -> bool:
    geoms = set(_geoms(env, name))
    pairs = env.data.contact.geom
    return any((first in geoms) != (second in geoms) for first, second in pairs)

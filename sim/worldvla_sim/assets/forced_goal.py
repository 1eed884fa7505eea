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
_TRAVEL = 0.3  # [m] after which something should have been met
_SLOPE = 'wine_rack_1_top_region'
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
    placements = [goal for goal in env.goal if len(goal) == 3]
    for predicate, name in (goal for goal in env.goal if len(goal) == 2):
        joint, value = _joint_goal(predicate, name)
        env.data.joint(joint).qpos[0] = value
    mujoco.mj_forward(env.model, env.data)
    places = [place for *_, place in placements]
    for index, (predicate, name, place) in enumerate(placements):
        shared = places.count(place) > 1
        aside = (_SPREAD if index % 2 else -_SPREAD) if shared else 0.0
        if place == _SLOPE:
            _lay_on_slope(env, name, place)
        elif predicate == 'in':
            _put_into(env, name, place, aside)
        else:
            _put_onto(env, name, place, aside)
    for _ in range(settle_steps):
        env.step(NO_OP)
    return env.success


def _joint_goal(predicate: str, name: str) -> tuple[str, float]:
    """Return the joint that a one-place predicate speaks of and the value it asks for."""
    if predicate == 'turnon':
        return f'{name}_button', _KNOB_ON
    if name == 'microwave_1':
        return f'{name}_microjoint', _DOOR_CLOSED
    drawer = name.replace('_region', '_level')
    return drawer, _DRAWER_CLOSED if predicate == 'close' else _DRAWER_OPEN


def _put_onto(env: LiberoEnv, name: str, place: str, aside: float) -> None:
    """Lower an object onto the middle of a surface or of another object."""
    truth = env.privileged()
    middle = (truth.bodies if place in truth.bodies else truth.sites)[place][0]
    low, _ = _bounds(env, name)
    position = truth.bodies[name][0]
    start = middle + np.array([aside, 0, _DROP + position[2] - low[2]])
    _lower(env, name, place, start, np.array([0.0, 0.0, -1.0]))


def _put_into(env: LiberoEnv, name: str, place: str, aside: float) -> None:
    """Lower an object, its middle over the region's middle, from just above the region's end."""
    joint = env.data.joint(f'{name}_joint0')
    fixture = f'{place.split("_1_")[0]}_1'
    if fixture.startswith('desk_caddy'):
        joint.qpos[3:] = env.privileged().bodies[fixture][1]  # the book parallel to the walls
        mujoco.mj_forward(env.model, env.data)
    middle, axes = env.privileged().sites[place]
    half_height = np.abs(axes @ env.model.site(place).size)[2]  # as LIBERO computes it
    low, high = _bounds(env, name)
    shift = middle - (low + high) / 2
    shift[0] += aside
    shift[2] = middle[2] - half_height + _START - low[2]
    _lower(env, name, place, joint.qpos[:3] + shift, np.array([0.0, 0.0, -1.0]))


def _lay_on_slope(env: LiberoEnv, name: str, place: str) -> None:
    """Lay a bottle on a sloping shelf: its foot at the lower end, its axis up the slope."""
    middle, axes = env.privileged().sites[place]
    across, into, up = axes.T  # the region's y points into the shelf, its z up the slope
    attitude = np.column_stack([across, np.cross(up, across), up])
    mujoco.mju_mat2Quat(env.data.joint(f'{name}_joint0').qpos[3:], attitude.ravel())
    _lower(env, name, place, middle - 0.06 * into + 0.01 * up, into)


def _lower(env: LiberoEnv, name: str, place: str, start: np.ndarray, down: np.ndarray) -> None:
    """Move an object from `start` (3,) [m] along `down` (3,) until it touches something."""
    joint = env.data.joint(f'{name}_joint0')
    joint.qvel[:] = 0
    for travel in np.arange(0, _TRAVEL, _STEP):
        joint.qpos[:3] = start + travel * down
        mujoco.mj_forward(env.model, env.data)
        if _touches(env, name):
            return
    raise SimulationError(f'{env}: {name} meets nothing below {place}')


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

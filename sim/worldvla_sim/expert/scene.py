# SPDX-License-Identifier: Apache-2.0
"""Where things are, for the experts: poses and collision shapes as points, in the world frame."""

from collections.abc import Iterable
import re
from typing import Any

import numpy as np

from worldvla_sim.libero_env import LiberoEnv

UP = np.array([0.0, 0.0, 1.0])
"""The world's z axis."""
UP.setflags(write=False)

_POINT_SPACING = 0.012  # [m] between sampled points; finger pads are 16 mm wide
_MAX_POINTS_PER_AXIS = 24
_FURNITURE_RADIUS = 0.35  # [m] bounding radius from which a shape is a table, floor or wall
_BEHIND = 0.02  # [m] ahead of a path's start, up to which an obstacle is not in the way
_ROBOT_BODIES = ('robot', 'gripper', 'mount')
_FINGER_BODIES = (('gripper0_leftfinger', 'gripper0_finger_joint1_tip'),
                  ('gripper0_rightfinger', 'gripper0_finger_joint2_tip'))


def category(name: str) -> str:
    """Turn `porcelain_mug_1` into `porcelain_mug`."""
    return re.sub(r'_\d+$', '', name)


class Scene:
    """Ground truth of one environment between two resets."""

    def __init__(self, env: LiberoEnv) -> None:
        self._env = env
        self.model: Any = env.model  # mujoco.MjModel
        self.data: Any = env.data  # mujoco.MjData
        self.goal = env.goal
        self._body_ids = env.body_ids
        self._body_ids['robot'] = self.model.body('robot0_base').id
        self._owners = [self._owner(geom) for geom in range(self.model.ngeom)]
        self._fingers = [self._shapes_of_bodies(bodies) for bodies in _FINGER_BODIES]
        self._samples = self._sample_shapes()

    def position(self, name: str) -> np.ndarray:
        """Origin of an object, fixture or region, (3,) [m]."""
        if name in self._body_ids:
            return self.data.xpos[self._body_ids[name]].copy()
        return self.data.site(name).xpos.copy()

    def axes(self, name: str) -> np.ndarray:
        """Axes of an object, fixture or region as columns, (3, 3)."""
        if name in self._body_ids:
            return self.data.xmat[self._body_ids[name]].reshape(3, 3).copy()
        return self.data.site(name).xmat.reshape(3, 3).copy()

    def joint(self, name: str) -> float:
        """Position of a hinge [rad] or slide [m]."""
        return float(self.data.joint(name).qpos[0])

    def in_fixture(self, fixture: str, local: Iterable[float]) -> np.ndarray:
        """Turn a point in a fixture's frame into the world frame, (3,) [m]."""
        return self.position(fixture) + self.axes(fixture) @ np.asarray(list(local))

    def holds(self, predicate: list[str]) -> bool:
        """Whether one predicate of the goal is true now."""
        return self._env.holds(predicate)

    def speed(self, name: str) -> float:
        """Speed of an object's origin [m/s]."""
        return self._speed('mjOBJ_BODY', self._body_ids[name])

    def site_speed(self, site: int) -> float:
        """Speed of a site [m/s], by its index."""
        return self._speed('mjOBJ_SITE', site)

    def _speed(self, kind: str, index: int) -> float:
        import mujoco  # not at the top: see `libero_setup.has_diverged`
        velocity = np.zeros(6)
        mujoco.mj_objectVelocity(self.model, self.data, getattr(mujoco.mjtObj, kind), index,
                                 velocity, 0)
        return float(np.linalg.norm(velocity[3:]))

    def contacts(self) -> set[frozenset[str]]:
        """Return the owners of what is in contact: objects, fixtures, 'gripper', 'robot', ''."""
        return {frozenset((self._owners[a], self._owners[b])) for a, b in self.data.contact.geom}

    def touching(self, name: str, other: str) -> bool:
        """Whether two objects, or an object and the 'gripper', are in contact."""
        return {name, other} in self.contacts()

    def meets_obstacle(self, held: str) -> bool:
        """Whether the robot, or what it holds, is in contact with anything else."""
        moving = {'robot', 'gripper', held}
        return any((self._owners[a] in moving) != (self._owners[b] in moving)
                   for a, b in self.data.contact.geom)

    def pinched(self, name: str) -> bool:
        """Whether both fingers touch an object."""
        contacts = [(a, b) for a, b in self.data.contact.geom
                    if name in (self._owners[a], self._owners[b])]
        return all(any(a in finger or b in finger for a, b in contacts)
                   for finger in self._fingers)

    def _shapes_of_bodies(self, names: Iterable[str]) -> set[int]:
        bodies = {self.model.body(name).id for name in names}
        return {geom for geom in range(self.model.ngeom) if self.model.geom_bodyid[geom] in bodies}

    def _owner(self, geom: int) -> str:
        """Return which object, fixture, 'gripper', 'robot' or '' (furniture) a shape is of."""
        root = self.model.body(self.model.body_rootid[self.model.geom_bodyid[geom]])
        body = self.model.body(self.model.geom_bodyid[geom]).name
        if body.startswith(_ROBOT_BODIES):
            return 'gripper' if body.startswith('gripper') else 'robot'
        return next((name for name, index in self._body_ids.items() if index == root.id), '')

    def _sample_shapes(self) -> list[tuple[str, int, np.ndarray]]:
        """Fill the bounding box of every movable-size collision shape with points, once."""
        import mujoco  # not at the top: see `libero_setup.has_diverged`
        samples = []
        for geom in range(self.model.ngeom):
            owner = self._owners[geom]
            collides = self.model.geom_contype[geom] or self.model.geom_conaffinity[geom]
            furniture = (self.model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE
                         or self.model.geom_rbound[geom] > _FURNITURE_RADIUS)
            if not collides or owner in ('gripper', 'robot') or furniture:
                continue
            centre, half = np.split(self.model.geom_aabb[geom], 2)
            counts = np.clip(np.ceil(2 * half / _POINT_SPACING).astype(int) + 1, 2,
                             _MAX_POINTS_PER_AXIS)
            axes = [np.linspace(-h, h, count) for h, count in zip(half, counts, strict=True)]
            grid = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1).reshape(-1, 3)
            samples.append((owner, geom, grid + centre))
        return samples

    def points(self, only: str | None = None, without: Iterable[str] = ()) -> np.ndarray:
        """Points that fill the collision shapes, (n, 3) [m].

        :param only: of this object alone.
        :param without: names of objects to leave out.
        """
        excluded = set(without)
        clouds = [points @ self.data.geom_xmat[geom].reshape(3, 3).T + self.data.geom_xpos[geom]
                  for owner, geom, points in self._samples
                  if owner not in excluded and (only is None or owner == only)]
        return np.concatenate(clouds) if clouds else np.zeros((0, 3))

    def highest(self, start: np.ndarray, end: np.ndarray, half_width: float,
                without: Iterable[str] = ()) -> float:
        """Height of the highest obstacle on the way between two points [m]; -inf if none.

        What lies behind or beside the start does not count, because it only gets farther away.
        """
        points = self.points(without=without)
        along = (end - start)[:2]
        length = max(float(np.linalg.norm(along)), 1e-6)
        offset = points[:, :2] - start[:2]
        forward = offset @ along / length
        sideways = offset @ np.array([-along[1], along[0]]) / length
        inside = ((forward > _BEHIND) & (forward < length + half_width)
                  & (np.abs(sideways) < half_width))
        return float(points[inside, 2].max(initial=-np.inf))

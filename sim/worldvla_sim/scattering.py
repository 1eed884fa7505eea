# SPDX-License-Identifier: Apache-2.0
"""Lay the objects of a task elsewhere, so that demonstrations cannot be learned by heart.

LIBERO lays its objects within a centimetre or two of the same places, those of libero_object not
even that. A policy that is trained on such scenes learns where the hand goes from the task and the
arm alone; it does as well as one that looks, as long as nothing is moved (LIBERO-PRO, Zhou et al.
2025, found it of large models). So objects are moved farther, and moved again while an episode is
played, which gives ten layouts for the pictures of one.
"""

from collections.abc import Mapping

import numpy as np
from scipy.spatial import cKDTree

from worldvla_ros.errors import ConfigError
from worldvla_sim.expert.robot import Robot
from worldvla_sim.expert.scene import Scene
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.observation import SimObservation

_OWN_SHARE = 0.4  # of the reach, that each object is moved by itself; the rest they move together
_INTERVAL = (6, 19)  # [step] shortest and longest time that objects are left where they are
_SHARE_OF_EPISODE = 0.5  # of the suite's step limit, in which objects are moved
_GAP = 0.012  # [m] between objects, beside each other, in an episode that is played
_FREE_HAND = 0.05  # [m] around the grip site
_REACH = (0.40, 0.72)  # [m] from the robot's base, horizontally
_TRIES = 8  # per object
_FARTHEST = 0.3  # [m] that objects can be asked to be moved


def check_reach(metres: float) -> None:
    """Refuse a distance that objects cannot be moved by; ConfigError."""
    if not 0 <= metres <= _FARTHEST:
        raise ConfigError(f'--scatter must be from 0 to {_FARTHEST} m, which the arm reaches, got '
                          f'{metres}')


class Scattering:
    """Moves what stands free, now and then, from where it stood when the episode began.

    Objects that touch each other are moved as one, so that what is said of them stays true: all
    move together, and each group a little by itself. What is in a fixture, on one or in the hand
    stays.
    """

    def __init__(self, env: LiberoEnv, reach: float, seed: int, gap: float = _GAP) -> None:
        """Begin with an episode that `env.reset` has just started.

        :param reach: how far an object is moved along x and y at most, either way [m].
        :param gap: what is left free beside it at least [m].
        """
        self._env, self._reach, self._gap = env, reach, gap
        self._random = np.random.default_rng((seed, 2))  # another stream than turns and noise
        self._scene = Scene(env)
        self._robot = Robot(self._scene)
        self._homes = {name: self._scene.position(name)[:2] for name in env.loose_objects}
        self._last = round(_SHARE_OF_EPISODE * env.max_steps) if reach > 0 else -1
        self._next = 0

    def is_due(self) -> bool:
        """Whether objects are to be moved before the present step."""
        return self._next <= self._env.steps < self._last

    def scatter(self) -> SimObservation:
        """Move the objects, and return what is seen then."""
        self._next = self._env.steps + int(self._random.integers(*_INTERVAL))
        together = self._random.uniform(-1, 1, 2) * (1 - _OWN_SHARE) * self._reach
        for group in self._groups():
            self._scatter_group(group, together)
        return self._env.observe()

    def _groups(self) -> list[list[str]]:
        """Return the objects that stand free, those that touch each other together."""
        group_of = {name: {name} for name in self._homes}
        held: set[str] = set()
        for pair in self._scene.contacts():
            loose = [name for name in pair if name in group_of]
            if len(loose) == 2:
                joined = group_of[loose[0]] | group_of[loose[1]]
                group_of.update(dict.fromkeys(joined, joined))
            elif loose and '' not in pair:  # of a fixture, or the hand; '' is the table
                held.update(loose)
        groups = {id(group): sorted(group) for group in group_of.values()}
        return [group for group in groups.values() if not held.intersection(group)]

    def _scatter_group(self, group: list[str], together: np.ndarray) -> None:
        """Move a group by (2,) [m] and a little by itself from home, if it finds a free place."""
        scene = self._scene
        before = {name: scene.position(name)[:2] for name in group}
        own = np.concatenate([scene.points(only=name) for name in group])
        others = scene.points(without=group)[:, :2]
        for _ in range(_TRIES):
            by_itself = self._random.uniform(-1, 1, 2) * _OWN_SHARE * self._reach
            move = self._homes[group[0]] + together + by_itself - before[group[0]]
            if not self._fits(move, before, own, others):
                continue
            self._env.move_objects({name: place + move for name, place in before.items()})
            if not any(scene.touching(name, part) for name in group
                       for part in ('robot', 'gripper')):
                return
            self._env.move_objects(before)

    def _fits(self, move: np.ndarray, before: Mapping[str, np.ndarray], own: np.ndarray,
              others: np.ndarray) -> bool:
        """Whether a group that is moved by (2,) [m] is in reach, and beside nothing.

        :param before: where each of it is, (2,) [m].
        :param own: points of the group there, (n, 3) [m].
        :param others: points of all else, horizontally, (m, 2) [m].
        """
        for place in before.values():
            away = float(np.linalg.norm(place + move - self._env.base_position[:2]))
            if not _REACH[0] < away < _REACH[1]:
                return False
        moved = own + np.append(move, 0.0)
        if (np.linalg.norm(moved - self._robot.position, axis=1) < _FREE_HAND).any():
            return False
        outline = moved[:, :2]
        low, high = outline.min(0) - self._gap, outline.max(0) + self._gap
        near = others  # most are far away
        for axis in (0, 1):
            near = near[(low[axis] < near[:, axis]) & (near[:, axis] < high[axis])]
        beside, _ = cKDTree(near).query(outline, distance_upper_bound=self._gap)
        return bool(np.isinf(beside).all())

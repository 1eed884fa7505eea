# SPDX-License-Identifier: Apache-2.0
"""LIBERO as an environment: reset to a task and state, step, see, and read the official success.

One environment holds one task and plays any number of episodes. All calls of one environment must
come from one thread, because an OpenGL context belongs to the thread that made it.
"""

import atexit
from collections.abc import Mapping
from typing import Any
import weakref
from xml.etree import ElementTree

import numpy as np

from worldvla_ros.datatypes import ACTION_DIM
from worldvla_ros.errors import SimulationError
from worldvla_ros.held_signals import signals_held
from worldvla_sim.libero_setup import (
    check_renderer,
    has_diverged,
    import_libero,
    numpy_seeded,
    resolve_assets,
    use_assets,
)
from worldvla_sim.observation import Privileged, SimObservation
from worldvla_sim.tasks import initial_states, load_task

CONTROL_PERIOD = 0.05
"""Seconds of one control step; LIBERO's controller runs at 20 Hz."""

NO_OP = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
"""Zero motion with the gripper open: what the published protocol settles a scene with."""
NO_OP.setflags(write=False)

LOCKSTEP, REALTIME = 'lockstep', 'realtime'
"""Whether the simulator waits for each action, or runs on at the control rate."""

MSAA_LEVELS = (0, 4)
ROBOTS = ('light', 'full')
_RESET_ATTEMPTS = 10


_open_environments: 'weakref.WeakSet[LiberoEnv]' = weakref.WeakSet()


def _close_all() -> None:
    """Free contexts before the EGL display goes, else every one of them prints an EGLError."""
    for env in list(_open_environments):
        env.close()


class LiberoEnv:
    """One LIBERO task with its official success predicate, at 20 control steps a second.

    Two resets with the same arguments followed by the same actions give bit-identical states,
    because each reset builds the model anew.

    :param suite: one of `worldvla_sim.tasks.SUITES`.
    :param task: index in the suite.
    :param assets: 'builtin', 'official', or 'auto' (official where found); see `libero_setup`.
    :param robot: 'light' (decimated visual meshes, same physics, 2-3 times faster) or 'full'.
    :param msaa: samples per pixel against jagged edges: 4, or 0, which steps 1.5 times faster.
    :param image_size: edge of the square camera images [px].
    :param wrist: render the wrist camera too.
    :param render: render at all; without, observations carry no images.
    :param seed: seeds the layout that LIBERO samples while it constructs; every reset replaces it.
    :raises SimulationError: unknown suite or task, bad option, no renderer, or LIBERO's own error.
    :raises AssetError: no such assets.
    """

    control_period = CONTROL_PERIOD
    _env: Any = None

    def __init__(self, suite: str, task: int, *, assets: str = 'auto', robot: str = 'light',
                 msaa: int = 0, image_size: int = 256, wrist: bool = False, render: bool = True,
                 seed: int = 0) -> None:
        if robot not in ROBOTS or msaa not in MSAA_LEVELS or image_size < 1:
            raise SimulationError(f'robot must be one of {ROBOTS}, msaa one of {MSAA_LEVELS} and '
                                  f'image_size >= 1, got {robot!r}, {msaa} and {image_size}')
        self.task_info = load_task(suite, task)
        self._assets = resolve_assets(assets)
        self._cameras = ('agentview', 'robot0_eye_in_hand')[:1 + wrist] if render else ()
        self._image_size = image_size
        self.steps, self.last_action = 0, NO_OP
        self.success = False
        if render:
            check_renderer()
        use_assets(self._assets)
        with numpy_seeded(seed):
            self._env = self._construct(robot)
        self._env.has_offscreen_renderer = render
        self._env.set_xml_processor(lambda xml: xml.replace(
            '<visual>', f'<visual><quality offsamples="{msaa}" numslices="16" numstacks="8"/>'
            f'<global offwidth="{image_size}" offheight="{image_size}"/>', 1))
        for observable in self._env._observables.values():
            observable.set_enabled(False)  # states are read directly; these cost 3 ms per step
        if not _open_environments:
            atexit.unregister(_close_all)
            atexit.register(_close_all)  # after, so run before, robosuite's eglTerminate
        _open_environments.add(self)

    def _construct(self, robot: str) -> Any:
        """Build LIBERO's environment; its renderer comes with the first reset."""
        import_libero()
        from libero.libero.envs import TASK_MAPPING
        from libero.libero.envs.bddl_utils import get_problem_info
        from robosuite.controllers import load_controller_config
        robot_name = 'Panda'
        if robot == 'light':
            from worldvla_sim.assets.light_robot import register_light_robot
            register_light_robot()
            robot_name = 'LightPanda'
        bddl_path = str(self.task_info.bddl_path)
        try:
            problem = TASK_MAPPING[get_problem_info(bddl_path)['problem_name']]
            controller = load_controller_config(default_controller='OSC_POSE')
            with signals_held():
                return problem(
                    bddl_path, robots=[robot_name], use_camera_obs=False,
                    has_offscreen_renderer=False, ignore_done=True,
                    control_freq=round(1 / CONTROL_PERIOD), hard_reset=True,
                    controller_configs=controller)
        except Exception as error:  # LIBERO and MuJoCo raise whatever a bad asset runs into
            raise SimulationError(f'{self} cannot be built with {self._assets.kind} assets in '
                                  f'{self._assets.path}: {error}') from error

    def __repr__(self) -> str:
        return f'LiberoEnv({self.suite}, {self.task})'

    def __enter__(self) -> 'LiberoEnv':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def suite(self) -> str:
        """Name of the suite."""
        return self.task_info.suite

    @property
    def task(self) -> int:
        """Index in the suite."""
        return self.task_info.index

    @property
    def instruction(self) -> str:
        """The sentence that a policy is given."""
        return self.task_info.instruction

    @property
    def max_steps(self) -> int:
        """Published limit of control steps, settle steps not counted; not enforced here."""
        return self.task_info.max_steps

    @property
    def assets(self) -> str:
        """The assets in use: 'builtin' or 'official'."""
        return self._assets.kind

    @property
    def asset_path(self) -> str:
        """Folder of the assets in use."""
        return str(self._assets.path)

    @property
    def goal(self) -> list[list[str]]:
        """The predicates that must all hold, e.g. [['on', 'akita_black_bowl_1', 'plate_1']]."""
        return self._libero.parsed_problem['goal_state']

    def holds(self, predicate: list[str]) -> bool:
        """Whether a predicate, such as one of `goal`, is true now; privileged."""
        return bool(self._libero._eval_predicate(predicate))

    @property
    def body_ids(self) -> dict[str, int]:
        """Index in `model` of the body of each object and fixture, by name; privileged."""
        return dict(self._libero.obj_body_id)

    @property
    def loose_objects(self) -> list[str]:
        """Names of what can be carried: neither fixtures nor what belongs to them."""
        return list(self._libero.objects_dict)

    @property
    def model(self) -> Any:
        """MuJoCo's model (mujoco.MjModel); privileged, replaced by every reset."""
        return self._libero.sim.model._model

    @property
    def data(self) -> Any:
        """MuJoCo's data (mujoco.MjData); privileged, replaced by every reset."""
        return self._libero.sim.data._data

    @property
    def base_position(self) -> np.ndarray:
        """Position of the robot's base in the world frame, (3,) [m]; their axes are parallel."""
        return self.data.body('robot0_base').xpos.copy()

    @property
    def _libero(self) -> Any:
        if self._env is None:
            raise SimulationError(f'{self} is closed')
        return self._env

    def reset(self, init_state: int | None = None, *, seed: int = 0,
              settle_steps: int = 10) -> SimObservation:
        """Start an episode and return its first observation.

        Fixtures (cabinet, stove, ...) are not part of LIBERO's initial states. They are sampled in
        either case: for an initial state from `seed` and its index, so each has a layout of its
        own, as in published evaluations, and never one that `seed` alone gives.

        :param init_state: index of an official initial state; None samples the task's ranges.
        :param seed: of everything that is sampled.
        :param settle_steps: no-op actions before the episode starts; states are stored unsettled.
        :raises SimulationError: no such initial state, or the scene cannot be placed.
        """
        states = initial_states(self.task_info)
        if init_state is not None and not 0 <= init_state < len(states):
            raise SimulationError(f'{self} has initial states 0 to {len(states) - 1}, '
                                  f'got {init_state}')
        # The official states were recorded with this arm noise; their rows bring it along.
        noise = 'default' if init_state is None else None
        self._libero.robot_configs[0]['initialization_noise'] = noise
        with numpy_seeded(seed) if init_state is None else numpy_seeded(seed, init_state):
            self._rebuild()
        if init_state is not None:
            self.set_state(states[init_state])
        self.steps, self.last_action = 0, NO_OP
        for _ in range(settle_steps):
            self._advance(NO_OP)
        self.success = bool(self._libero._check_success())
        return self.observe()

    def _rebuild(self) -> None:
        """Run LIBERO's reset with bounded retries; its wrapper's own retries for ever."""
        from robosuite.utils.errors import RandomizationError
        use_assets(self._assets)
        for _ in range(_RESET_ATTEMPTS):
            # LIBERO appends to this list on every reset and samples once per entry, so without
            # clearing it the layout would depend on the number of resets before.
            self._libero.object_property_initializers.clear()
            try:
                with signals_held():
                    self._libero.reset()
                return
            except RandomizationError as error:
                cause = error
            except Exception as error:
                raise SimulationError(f'{self} cannot be reset with {self.assets} assets in '
                                      f'{self.asset_path}: {error}') from error
        raise SimulationError(f'{self}: objects do not fit their ranges after {_RESET_ATTEMPTS} '
                              f'attempts; take another seed') from cause

    def set_state(self, state: np.ndarray) -> None:
        """Put the simulation into a flat state [time, qpos, qvel], such as `state` returned."""
        width = 1 + self.model.nq + self.model.nv
        if state.shape != (width,):
            raise SimulationError(f'{self}: an initial state has {len(state)} values, the model '
                                  f'built from {self.asset_path} needs {width}')
        self._libero.sim.set_state_from_flattened(state)
        self._libero.sim.forward()
        self._libero._post_process()

    def move_objects(self, places: Mapping[str, np.ndarray]) -> None:
        """Put loose objects elsewhere, at rest, as high and as turned as they are.

        :param places: world x and y (2,) [m] of each, by name.
        """
        for name, place in places.items():
            joint = self._libero.objects_dict[name].joints[-1]
            pose = self._libero.sim.data.get_joint_qpos(joint)
            self._libero.sim.data.set_joint_qpos(joint, np.append(place, pose[2:]))
            self._libero.sim.data.set_joint_qvel(joint, np.zeros(6))
        self._libero.sim.forward()

    def place_fixtures(self, model_xml: str) -> None:
        """Put cabinets, stoves and the like where a recorded model has them, until the next reset.

        :param model_xml: MuJoCo's XML of the model, as LIBERO's own files keep it (`model_file`).
        :raises SimulationError: it is no XML, or lacks a fixture.
        """
        try:
            root = ElementTree.fromstring(model_xml)
        except ElementTree.ParseError as error:
            raise SimulationError(f'{self}: the recorded model is no XML: {error}') from error
        for fixture in self._libero.fixtures_dict.values():
            recorded = root.find(f".//body[@name='{fixture.root_body}']")
            if recorded is None:
                raise SimulationError(f'{self}: the recorded model has no {fixture.root_body!r}; '
                                      'is it of this task?')
            body = self.model.body(fixture.root_body)
            body.pos = [float(value) for value in recorded.get('pos', '0 0 0').split()]
            body.quat = [float(value) for value in recorded.get('quat', '1 0 0 0').split()]
        self._libero.sim.forward()

    def _advance(self, action: np.ndarray) -> None:
        """Run one control step (25 physics steps)."""
        try:
            with signals_held():  # in numba's code an interrupt becomes a SystemError
                _, _, done, _ = self._libero.step(action)
        except SimulationError:
            raise
        except Exception as error:
            raise SimulationError(f'{self} failed in step {self.steps}: {error}') from error
        if has_diverged(self.data):
            raise SimulationError(f'{self}: the physics diverged in step {self.steps}')
        self.success = bool(done)

    def step(self, action: np.ndarray) -> SimObservation:
        """Execute one action and return what follows.

        :param action: (7,) controller input, clipped to [-1, 1] by the controller: dx dy dz
            (1.0 = 0.05 m), rotation vector about the base axes (1.0 = 0.5 rad), gripper (-1 open,
            1 close).
        :raises SimulationError: another shape, a value that is not finite, or failed physics.
        """
        # As policies emit it: what crossed a wire in SI units is off in float64, and yet the same.
        action = np.asarray(action, dtype=np.float32).astype(np.float64)
        if action.shape != (ACTION_DIM,) or not np.isfinite(action).all():
            raise SimulationError(f'an action is ({ACTION_DIM},) finite numbers, got shape '
                                  f'{action.shape}: {action}')
        self._advance(action)
        self.last_action = action
        self.steps += 1
        return self.observe()

    def stop_rendering(self) -> None:
        """Leave the images out of all observations from now on."""
        self._cameras = ()

    def observe(self) -> SimObservation:
        """Return the observation of this instant."""
        data, robot = self.data, self._libero.robots[0]
        images = [self._image(camera) for camera in self._cameras] + [None, None]
        return SimObservation(
            agentview=images[0], wrist=images[1],
            joint_positions=data.qpos[robot._ref_joint_pos_indexes].copy(),
            gripper_positions=data.qpos[robot._ref_gripper_joint_pos_indexes].copy(),
            ee_position=data.site_xpos[robot.eef_site_id].copy(),
            ee_quaternion=data.body('robot0_right_hand').xquat[[1, 2, 3, 0]],
            time=self.steps * CONTROL_PERIOD)

    def _image(self, camera: str) -> np.ndarray:
        """Render one camera, rotated by 180 degrees from robosuite's upside-down image."""
        sim, size = self._libero.sim, self._image_size
        try:
            sim._render_context_offscreen.gl_ctx.make_current()  # another one may live beside
            return sim.render(size, size, camera_name=camera)[::-1, ::-1].copy()
        except Exception as error:  # whatever the driver runs into
            raise SimulationError(f'{self} cannot render {camera}: {error}') from error

    def in_agentview(self, point: np.ndarray) -> np.ndarray:
        """Return where a point (3,) [m] is in the picture, (2,): shares of width and height.

        From the upper left corner of the picture as policies see it; outside of [0, 1] the point
        is outside of the picture, and NaN where it is behind the camera.
        """
        camera = self.model.camera('agentview').id
        right, up, back = (point - self.data.cam_xpos[camera]) @ self.data.cam_xmat[
            camera].reshape(3, 3)
        if back >= 0:
            return np.full(2, np.nan)
        widths = 2 * np.tan(np.radians(self.model.cam_fovy[camera]) / 2) * -back
        return 0.5 - np.array([right, up]) / widths  # policies see it mirrored

    def privileged(self) -> Privileged:
        """Return the true poses of objects, fixtures and goal regions, and fixture joints."""
        libero, data = self._libero, self.data
        bodies = {name: (data.xpos[index].copy(), data.xquat[index].copy())
                  for name, index in self.body_ids.items()}
        sites = {name: (data.site(name).xpos.copy(), data.site(name).xmat.reshape(3, 3).copy())
                 for name in libero.object_sites_dict}
        joints = {joint: float(data.joint(joint).qpos[0])
                  for fixture in libero.fixtures_dict.values() for joint in fixture.joints}
        return Privileged(bodies, sites, joints)

    def state(self) -> np.ndarray:
        """Return the flat state [time, qpos, qvel], as official initial states are stored."""
        return self._libero.sim.get_state().flatten()

    def close(self) -> None:
        """Free the OpenGL context and the simulation; a second call does nothing."""
        if self._env is None:
            return
        with signals_held():
            sim, self._env = self._env.sim, None
            _open_environments.discard(self)
            if sim is None:  # the last reset failed before it had one
                return
            if context := sim._render_context_offscreen:
                context.gl_ctx.make_current()
                context.con.free()
                context.gl_ctx.free()  # now, because robosuite's own frees wait for the collector
            sim.free()

    def __del__(self) -> None:
        self.close()

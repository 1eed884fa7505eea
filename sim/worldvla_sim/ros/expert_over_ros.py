# SPDX-License-Identifier: Apache-2.0
"""The scripted expert as a commander of the bridge: the whole loop must end in success.

    python -m worldvla_sim.evaluate --policy expert --over ros --suite libero_object

The expert needs the true state, which no topic carries. It reads it from a mirror: an environment
of its own that starts as the bridge's does and takes the same actions. The same
seed and commands give the same trajectory in lockstep, so both stay equal to the last bit; that is
checked at every step, and a difference ends the episode as an error.
"""

from collections.abc import Callable
import time

import numpy as np
from rcl_interfaces.srv import ListParameters
import rclpy
from rclpy.node import Node
from sensor_msgs.msg import JointState

from worldvla_ros.errors import SimulationError
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE
from worldvla_ros.msg import DeltaAction, Episode
from worldvla_ros.nodes.conversions import command_to_action
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.safety.command import ActionScale, Command
from worldvla_ros.srv import ResetEpisode
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.kept_environment import KeptEnvironment
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.observation import SimObservation
from worldvla_sim.ros.repeated_call import RepeatedCall
from worldvla_sim.runner import EpisodeJob, EvaluationSettings

_TIMEOUT = 60.0  # [s] for any one answer of the bridge


class ExpertCommander(Node):
    """Plays episodes on the bridge, one command per control step.

    :param processes: the bridge; if it ends that is an error at once
    """

    def __init__(self, processes: ProcessGroup) -> None:
        super().__init__('expert_commander')
        self._processes = processes
        self._scale = ActionScale()
        self._expert = ExpertPolicy()
        self._kept = KeptEnvironment()
        self._joints: JointState | None = None
        self._episode: Episode | None = None
        self.create_subscription(JointState, 'joint_states', self._on_joints, 10)
        self.create_subscription(Episode, 'episode', self._on_episode, 10)
        self._commands = self.create_publisher(DeltaAction, f'/{POLICY_NODE}/action', 10)
        self._reset = self.create_client(ResetEpisode, f'/{BRIDGE_NODE}/reset')
        # Last, so that its answer tells that the other is known, see RepeatedCall.
        self._starting = RepeatedCall(self.create_client(
            ListParameters, f'/{BRIDGE_NODE}/list_parameters'), ListParameters.Request())

    def play(self, settings: EvaluationSettings, job: EpisodeJob) -> EpisodeRecord:
        """Play one episode in lockstep; WorldVLAError if it cannot be played to its end."""
        began = time.perf_counter()
        mirror = self._mirror_of(settings, job.task)
        observation = mirror.reset(job.init_state, seed=settings.seed)
        self._joints = self._episode = None
        self._spin_until(lambda: self._reset.service_is_ready() and self._starting.answered(),
                         'the bridge did not start')
        started = self._wait_for_reset(settings, job)
        played, joints = self._wait_for_step(started.episode, 0)
        self._expert.start(mirror, observation)
        while not mirror.success and mirror.steps < started.max_steps:
            _check_mirror(joints, observation, mirror.steps)
            action = self._expert.act(observation).astype(np.float32)
            command = Command.from_controller_input(action, self._scale)
            self._commands.publish(command_to_action(command, joints.header))
            observation = mirror.step(action)
            played, joints = self._wait_for_step(started.episode, mirror.steps)
        return EpisodeRecord(
            settings.suite, job.task, started.instruction, job.init_state, played.success,
            played.step, played.error or None, started.assets,
            round(time.perf_counter() - began, 3), policy=settings.policy)

    def close(self) -> None:
        """Free the mirror."""
        self._kept.close()

    def _mirror_of(self, settings: EvaluationSettings, task: int) -> LiberoEnv:
        return self._kept.get(settings.suite, task, assets=settings.assets,
                              robot=settings.robot, render=False)

    def _wait_for_reset(self, settings: EvaluationSettings,
                        job: EpisodeJob) -> ResetEpisode.Response:
        answer = self._reset.call_async(ResetEpisode.Request(
            suite=settings.suite, task=job.task, init_state=job.init_state, seed=settings.seed))
        self._spin_until(answer.done, 'the bridge did not answer the reset')
        if not answer.result().success:
            raise SimulationError(answer.result().message)
        return answer.result()

    def _wait_for_step(self, episode: int, step: int) -> tuple[Episode, JointState]:
        """Spin until the bridge has played a step; return its episode and the joints after it."""
        self._spin_until(lambda: self._has_played(episode, step),
                         f'the bridge did not play step {step}')
        return self._episode, self._joints

    def _spin_until(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + _TIMEOUT
        while not condition():
            rclpy.spin_once(self, timeout_sec=0.1)
            self._processes.check()
            if time.monotonic() > deadline:
                raise SimulationError(f'{complaint} within {_TIMEOUT:g} s')

    def _has_played(self, episode: int, step: int) -> bool:
        played, joints = self._episode, self._joints
        if played is None or joints is None or played.episode != episode:
            return False
        if played.state == Episode.STATE_ERROR:
            raise SimulationError(played.error)
        return bool(played.step >= step and joints.header.stamp == played.header.stamp)

    def _on_joints(self, message: JointState) -> None:
        self._joints = message

    def _on_episode(self, message: Episode) -> None:
        self._episode = message


def _check_mirror(joints: JointState, observation: SimObservation, step: int) -> None:
    """Compare the joints of bridge and mirror; they must be equal to the last bit."""
    expected = [*observation.joint_positions, *observation.gripper_positions]
    if not np.array_equal(joints.position, expected):
        drift = np.abs(np.subtract(joints.position, expected)).max()
        raise SimulationError(f'the bridge and its mirror differ by {drift:.3g} rad at step '
                              f'{step}: lockstep is not deterministic here')

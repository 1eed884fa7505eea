# SPDX-License-Identifier: Apache-2.0
"""The node `libero_bridge`: LIBERO as a robot with cameras on ROS 2 topics.

lockstep: publish frame n, wait for its command, step, publish frame n + 1. The same seed and the
same commands give the same trajectory. realtime: a step every 50 ms with the latest command of
this episode. Simulated time never goes back, also not from one episode to the next.
"""

from dataclasses import replace
import os
from pathlib import Path
import time
from typing import Any

from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
import numpy as np
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock as ClockMsg
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Header

from worldvla_ros.datatypes import Frame
from worldvla_ros.errors import SimulationError
from worldvla_ros.msg import DeltaAction, Episode
from worldvla_ros.nodes.conversions import action_to_command, frame_to_image, to_ns, to_time
from worldvla_ros.nodes.parameters import declare, read
from worldvla_ros.nodes.runtime import run_node
from worldvla_ros.safety.command import Command
from worldvla_ros.srv import ResetEpisode
from worldvla_sim.libero_env import CONTROL_PERIOD
from worldvla_sim.observation import rendered
from worldvla_sim.ros.bridge_settings import BridgeSettings
from worldvla_sim.ros.episode import EpisodePlayer, EpisodeRequest, EpisodeState

JOINT_NAMES = [*(f'panda_joint{i}' for i in range(1, 8)), 'panda_finger_joint1',
               'panda_finger_joint2']
_PERIOD_NS = round(CONTROL_PERIOD * 1e9)
# Beyond the largest obs.max_age of a policy node, so that no plan reaches into the next episode.
_EPISODE_GAP_NS = 11_000_000_000
_REPEAT_PERIOD = 0.5  # [s] wall time after which an unanswered frame is sent again
_COMPLAINT_PERIOD = 5.0  # [s] between two log lines of the same complaint
_OPEN_GRIPPER = -1.0
_TRANSPORT = Path(__file__).with_name('fastdds.xml')
# Latched, so that whoever joins late knows what runs.
_EPISODE_QOS = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class LiberoBridge(Node):
    """See the module. One thread runs all of it, because an OpenGL context belongs to one."""

    def __init__(self, executor: SingleThreadedExecutor, **kwargs: Any) -> None:
        super().__init__('libero_bridge', **kwargs)
        declare(self, BridgeSettings)
        self._config = read(self, BridgeSettings)
        self._player = EpisodePlayer(self._config)
        self._now_ns = _EPISODE_GAP_NS
        self._first_ns = 0  # stamp of the first frame of this episode
        self._command = Command.hold(_OPEN_GRIPPER)
        self._command_at = -np.inf  # [s] monotonic
        self._gripper_said = False  # in this episode: a hold keeps the gripper of the one before
        self._waiting_since = self._sent_at = time.monotonic()
        self._episodes = self.create_publisher(Episode, 'episode', _EPISODE_QOS)
        self._clocks = self.create_publisher(ClockMsg, '/clock', 10)
        self._agentview = self.create_publisher(Image, 'camera/agentview/image_raw', 2)
        self._wrist = (self.create_publisher(Image, 'camera/wrist/image_raw', 2)
                       if self._config.wrist else None)
        self._joints = self.create_publisher(JointState, 'joint_states', 10)
        self._ee_poses = self.create_publisher(PoseStamped, 'ee_pose', 10)
        self.create_subscription(DeltaAction, 'action', self._on_action, 10)
        self.create_service(ResetEpisode, '~/reset', self._on_reset)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        if self._config.lockstep:
            self.create_timer(_REPEAT_PERIOD / 5, self._repeat, clock=steady)
        else:
            self.create_timer(CONTROL_PERIOD, self._run_period, clock=steady)
        self.get_logger().info(
            f'ready: {self._config.mode}, {self._config.image_size} px, assets '
            f'{self._config.assets!r}; call ~/reset to start an episode')

    # --- episodes ------------------------------------------------------------------------------

    def _on_reset(self, request: ResetEpisode.Request,
                  response: ResetEpisode.Response) -> ResetEpisode.Response:
        if self._player.running:
            self._player.state = EpisodeState.ABORTED
            self._publish_episode()
        asked = EpisodeRequest(request.suite, request.task,
                               None if request.init_state < 0 else request.init_state,
                               request.seed)
        try:
            self._player.reset(asked)
        except SimulationError as error:
            self.get_logger().error(f'no episode: {error}')
            response.message = str(error)
            return response
        env = self._player.env
        self._command, self._gripper_said = Command.hold(_OPEN_GRIPPER), False
        self._now_ns += _EPISODE_GAP_NS
        self._first_ns = self._now_ns
        self.get_logger().info(
            f'episode {self._player.number}: {request.suite} task {request.task} '
            f'"{env.instruction}", {_start_text(asked)}; {env.assets} assets in '
            f'{env.asset_path}')
        self._publish_all()
        response.success = True
        response.episode = self._player.number
        response.instruction = env.instruction
        response.max_steps = self._player.max_steps
        response.assets = env.assets
        return response

    def _step(self, command: Command) -> None:
        """Play one control step and publish what follows."""
        self._player.step(command.to_controller_input(self._config.scale))
        if self._player.state is EpisodeState.ERROR:
            self.get_logger().error(f'the simulator failed: {self._player.error}; this episode '
                                    f'counts as an error, not as a failure')
        elif not self._player.running:
            self.get_logger().info(f'episode {self._player.number}: '
                                   f'{self._player.state.name.lower()} after '
                                   f'{self._player.steps} steps')

    # --- lockstep ------------------------------------------------------------------------------

    def _on_action(self, message: DeltaAction) -> None:
        command = action_to_command(message)
        if not command.is_finite:
            self.get_logger().error('command refused: it has a value that is not finite',
                                    throttle_duration_sec=_COMPLAINT_PERIOD)
            return
        if not self._config.lockstep:
            if self._is_of_before(message):
                return
            self._gripper_said |= not _is_sign_of_life(message)
            if not self._gripper_said:
                command = replace(command, gripper=self._command.gripper)
            self._command, self._command_at = command, time.monotonic()
        elif self._player.running and self._answers_frame(message):
            self._now_ns += _PERIOD_NS
            self._step(command)
            self._publish_all()

    def _answers_frame(self, message: DeltaAction) -> bool:
        """Whether a command is for the frame that waits."""
        return not _is_sign_of_life(message) and to_ns(message.header.stamp) >= self._now_ns

    def _repeat(self) -> None:
        """Keep the clock alive, and send the waiting frame again if its command is late."""
        self._publish_clock()
        now = time.monotonic()
        if not self._player.running or now - self._sent_at < _REPEAT_PERIOD:
            return
        self._publish_sensors()
        if now - self._waiting_since > _COMPLAINT_PERIOD:
            topic = self.resolve_topic_name('action')
            whom = ('a command; the policy holds still, see its status'
                    if self.count_publishers(topic) else f'a policy: nobody publishes {topic}')
            self.get_logger().warning(f'waiting for {whom}',
                                      throttle_duration_sec=_COMPLAINT_PERIOD)

    # --- realtime ------------------------------------------------------------------------------

    def _is_of_before(self, message: DeltaAction) -> bool:
        """Whether a command waited since the last episode; one without a stamp is of now."""
        late_ns = self._first_ns - to_ns(message.header.stamp)
        if not 0 < late_ns < self._first_ns:
            return False
        self.get_logger().warning(
            f'command refused: stamped {late_ns / 1e9:.1f} s before this episode, as those are '
            f'that waited for a reset; stamp commands with the time of /clock (use_sim_time), or '
            f'not at all', throttle_duration_sec=_COMPLAINT_PERIOD)
        return True

    def _run_period(self) -> None:
        """Play one control period with the latest command, whatever the policy does."""
        self._now_ns += _PERIOD_NS
        if self._player.running:
            fresh = time.monotonic() - self._command_at <= self._config.command_timeout
            if not fresh:
                self._command = Command.hold(self._command.gripper)
            self._step(self._command)
            self._publish_episode()
        self._publish_sensors()
        self._publish_clock()

    # --- outputs -------------------------------------------------------------------------------

    def _publish_all(self) -> None:
        """Publish the state after a step: time first, frames last, because they trigger."""
        self._publish_clock()
        self._publish_episode()
        self._waiting_since = time.monotonic()
        self._publish_sensors()

    def _publish_clock(self) -> None:
        self._clocks.publish(ClockMsg(clock=to_time(self._now_ns)))

    def _publish_episode(self) -> None:
        player, request = self._player, self._player.request
        message = Episode(header=Header(stamp=to_time(self._now_ns)), episode=player.number,
                          state=int(player.state), step=player.steps, error=player.error,
                          success=player.state is EpisodeState.SUCCESS, mode=self._config.mode)
        if request is not None:
            message.suite, message.task, message.seed = request.suite, request.task, request.seed
            message.init_state = -1 if request.init_state is None else request.init_state
            message.instruction = player.env.instruction
            message.max_steps = player.max_steps
            message.assets = player.env.assets
        self._episodes.publish(message)

    def _publish_sensors(self) -> None:
        self._sent_at = time.monotonic()
        observation = self._player.observation
        if observation is None:
            return
        header = Header(stamp=to_time(self._now_ns), frame_id=self._config.base_frame)
        self._joints.publish(JointState(
            header=header, name=JOINT_NAMES,
            position=np.concatenate([observation.joint_positions,
                                     observation.gripper_positions]).tolist()))
        x, y, z = map(float, observation.ee_position - self._player.env.base_position)
        qx, qy, qz, qw = map(float, observation.ee_quaternion)
        self._ee_poses.publish(PoseStamped(header=header, pose=Pose(
            position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))))
        if self._wrist is not None:
            self._wrist.publish(
                frame_to_image(Frame(rendered(observation.wrist), self._now_ns), 'wrist'))
        self._agentview.publish(
            frame_to_image(Frame(rendered(observation.agentview), self._now_ns), 'agentview'))

    def close(self) -> None:
        """Free the simulator before its OpenGL display goes."""
        self._player.close()


def _start_text(request: EpisodeRequest) -> str:
    return (f'random reset with seed {request.seed}' if request.init_state is None
            else f'initial state {request.init_state}')


def _is_sign_of_life(message: DeltaAction) -> bool:
    """Whether a policy only says that it is there, and has no action for this episode yet."""
    return message.verdict == DeltaAction.VERDICT_HOLD and not message.chunk_sequence


def main() -> int:
    """Run the node, with room in shared memory for what its listeners have not read yet."""
    os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(_TRANSPORT))
    return run_node(LiberoBridge, about='LIBERO as a robot with cameras on ROS 2 topics: node '
                    'libero_bridge. Its parameters are in config/bridge.yaml.')

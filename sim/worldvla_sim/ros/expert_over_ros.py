# SPDX-License-Identifier: Apache-2.0
"""The scripted expert as a commander of the bridge: the whole loop must end in success.

    python -m worldvla_sim.ros.expert_over_ros --suite libero_object --tasks 0-9 --init-states 0-1

The expert needs the true state, which no topic carries. It reads it from a mirror: an environment
of its own that starts as the bridge's does and takes the same actions. Lockstep is deterministic
(rule j), so both stay equal to the last bit; that is checked at every step, and a difference ends
the episode as an error.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import os
from pathlib import Path
import sys
import tempfile
import time

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from tqdm import tqdm

from worldvla_ros.errors import SimulationError, WorldVLAError
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE, sim_graph
from worldvla_ros.msg import DeltaAction, Episode
from worldvla_ros.nodes.conversions import command_to_action
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.safety.command import ActionScale, Command
from worldvla_ros.srv import ResetEpisode
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.evaluate import parse_indices
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.libero_env import LiberoEnv, SimObservation
from worldvla_sim.libero_setup import resolve_assets
from worldvla_sim.results import Results, summary_table

_TIMEOUT = 60.0  # [s] for any one answer of the bridge


class ExpertCommander(Node):
    """Plays episodes on the bridge, one command per control step."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__('expert_commander', **kwargs)
        self._scale = ActionScale()
        self._expert = ExpertPolicy()
        self._mirror: LiberoEnv | None = None
        self._joints: JointState | None = None
        self._episode: Episode | None = None
        self.create_subscription(JointState, 'joint_states', self._on_joints, 10)
        self.create_subscription(Episode, 'episode', self._on_episode, 10)
        self._commands = self.create_publisher(DeltaAction, f'/{POLICY_NODE}/action', 10)
        self._reset = self.create_client(ResetEpisode, f'/{BRIDGE_NODE}/reset')

    def play(self, suite: str, task: int, init_state: int, assets: str) -> EpisodeRecord:
        """Play one episode in lockstep; SimulationError if it cannot be played to its end."""
        began = time.perf_counter()
        mirror = self._mirror_of(suite, task, assets)
        observation = mirror.reset(init_state)
        self._joints = self._episode = None
        if not self._reset.wait_for_service(_TIMEOUT):
            raise SimulationError('the bridge does not answer; see its log')
        started = self._wait_for_reset(suite, task, init_state)
        self._expert.reset(mirror)
        while not mirror.success and mirror.steps < started.max_steps:
            self._check_mirror(observation, mirror.steps)
            action = self._expert.act().astype(np.float32)
            command = Command.from_controller_input(action, self._scale)
            self._commands.publish(command_to_action(command, self._joints.header))
            observation = mirror.step(action)
            self._wait_for_step(started.episode, mirror.steps)
        return EpisodeRecord(suite, task, started.instruction, init_state, self._episode.success,
                             self._episode.step, self._episode.error or None, started.assets,
                             round(time.perf_counter() - began, 3))

    def close(self) -> None:
        """Free the mirror."""
        if self._mirror is not None:
            self._mirror.close()

    def _mirror_of(self, suite: str, task: int, assets: str) -> LiberoEnv:
        if self._mirror is None or (self._mirror.suite, self._mirror.task) != (suite, task):
            self.close()
            self._mirror = LiberoEnv(suite, task, assets=assets, render=False)
        return self._mirror

    def _wait_for_reset(self, suite: str, task: int, init_state: int) -> ResetEpisode.Response:
        answer = self._reset.call_async(ResetEpisode.Request(
            suite=suite, task=task, init_state=init_state))
        rclpy.spin_until_future_complete(self, answer, timeout_sec=_TIMEOUT)
        if not answer.done() or not answer.result().success:
            raise SimulationError(answer.result().message if answer.done()
                                  else 'the bridge did not answer the reset; see its log')
        self._wait_for_step(answer.result().episode, 0)
        return answer.result()

    def _wait_for_step(self, episode: int, step: int) -> None:
        """Spin until the bridge has played a step and shown the joints after it."""
        deadline = time.monotonic() + _TIMEOUT
        while not self._has_played(episode, step):
            rclpy.spin_once(self, timeout_sec=0.1)
            if time.monotonic() > deadline:
                raise SimulationError(f'the bridge did not play step {step} within {_TIMEOUT:g} s')

    def _has_played(self, episode: int, step: int) -> bool:
        played, joints = self._episode, self._joints
        if played is None or joints is None or played.episode != episode:
            return False
        if played.state == Episode.STATE_ERROR:
            raise SimulationError(played.error)
        return played.step >= step and joints.header.stamp == played.header.stamp

    def _check_mirror(self, observation: SimObservation, step: int) -> None:
        """Compare the joints of mirror and bridge; they must be equal to the last bit."""
        expected = [*observation.joint_positions, *observation.gripper_positions]
        if not np.array_equal(self._joints.position, expected):
            drift = np.abs(np.subtract(self._joints.position, expected)).max()
            raise SimulationError(f'the bridge and its mirror differ by {drift:.3g} rad at step '
                                  f'{step}: lockstep is not deterministic here')

    def _on_joints(self, message: JointState) -> None:
        self._joints = message

    def _on_episode(self, message: Episode) -> None:
        self._episode = message


@contextlib.contextmanager
def running_commander(assets: str, log_folder: Path) -> Iterator[ExpertCommander]:
    """Start the bridge in lockstep and give a commander for it."""
    with ProcessGroup(sim_graph({'mode': 'lockstep', 'assets': assets}), log_folder):
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C ends the block
        commander = ExpertCommander()
        try:
            yield commander
        finally:
            commander.close()
            rclpy.try_shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Play episodes; 0 when every episode ran."""
    parser = argparse.ArgumentParser(prog='python -m worldvla_sim.ros.expert_over_ros',
                                     description=__doc__.splitlines()[0])
    parser.add_argument('--suite', default='libero_object')
    parser.add_argument('--tasks', type=parse_indices, default=parse_indices('0-9'))
    parser.add_argument('--init-states', type=parse_indices, default=parse_indices('0-1'))
    parser.add_argument('--assets', default='builtin')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args(argv)
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    results = Results({'policy': 'expert', 'suite': options.suite, 'over': 'ros',
                       'mode': 'lockstep', 'assets': options.assets})
    episodes = [(task, state) for task in options.tasks for state in options.init_states]
    try:
        assets = resolve_assets(options.assets).kind
        with (tempfile.TemporaryDirectory(prefix='worldvla_expert_') as logs,
              running_commander(assets, Path(logs)) as commander):
            for task, state in tqdm(episodes, unit='episode'):
                results.records.append(commander.play(options.suite, task, state, assets))
                if options.json is not None:
                    results.complete = len(results.records) == len(episodes)
                    results.save(options.json)
    except WorldVLAError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(summary_table(results.records))
    return 0


if __name__ == '__main__':
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""`make demo`: start the graph, play LIBERO episodes over topics, show what came of it."""

import argparse
from collections.abc import Callable
import json
import os
from pathlib import Path
import signal
import sys
import time
from typing import Any

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import Image
from tqdm import tqdm

from worldvla_ros.action import RunTask
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import BRIDGE_NODE, DEMO_ARGUMENTS, POLICY_NODE, demo_graph
from worldvla_ros.msg import ActionChunk, DeltaAction, Episode, PolicyStatus
from worldvla_ros.nodes.conversions import image_to_frame, to_ns
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.srv import ResetEpisode
from worldvla_sim.evaluate import parse_indices
from worldvla_sim.pictures import evenly_spaced, save_contact_sheet
from worldvla_sim.ros.recorder import EpisodeRecord, summary_row

_START_TIMEOUT = 120.0  # [s] load and warm-up on a slow machine
_RESET_TIMEOUT = 120.0  # [s] first use generates the asset pack
_STALL_TIMEOUT = 60.0  # [s] without a control step
_SHEET_COLUMNS = 8


class DemoClient(Node):
    """Plays episodes as any client of the two nodes could: reset, run the task, watch, record."""

    def __init__(self, processes: ProcessGroup) -> None:
        super().__init__('worldvla_demo')
        self._processes = processes
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._record: EpisodeRecord | None = None
        self._episode: Episode | None = None
        self.status: PolicyStatus | None = None
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(Episode, 'episode', self._on_episode, latched)
        self.create_subscription(Image, 'camera/agentview/image_raw', self._on_image, 10)
        self.create_subscription(ActionChunk, f'/{POLICY_NODE}/action_chunk', self._on_chunk, 10)
        self.create_subscription(DeltaAction, f'/{POLICY_NODE}/action', self._on_action, 10)
        self.create_subscription(PolicyStatus, f'/{POLICY_NODE}/status', self._on_status, 10)
        self._reset = self.create_client(ResetEpisode, f'/{BRIDGE_NODE}/reset')
        self._policy_state = self.create_client(GetState, f'/{POLICY_NODE}/get_state')
        self._run_task = ActionClient(self, RunTask, f'/{POLICY_NODE}/run_task')

    def wait_until_ready(self) -> PolicyStatus:
        """Wait for both nodes; return what the policy says of itself."""
        # While it loads the policy does not answer; unconfigured afterwards means it could not.
        self._spin_until(self._policy_state.service_is_ready, _START_TIMEOUT, 'the policy node')
        state = self._wait_for(self._policy_state.call_async(GetState.Request()), _START_TIMEOUT,
                               'the policy to load')
        if state.current_state.id == State.PRIMARY_STATE_UNCONFIGURED:
            raise WorldVLAError('the policy could not be loaded: '
                                + self._processes.last_message(POLICY_NODE))
        self._spin_until(lambda: self.status is not None and self._reset.service_is_ready()
                         and self._run_task.server_is_ready(), _START_TIMEOUT,
                         'the policy and the simulator to be ready')
        return self.status

    def play(self, suite: str, task: int, init_state: int, title: str) -> EpisodeRecord:
        """Play one episode to its end and return its record."""
        self._record = record = EpisodeRecord()  # now: the first frame precedes the answer
        started = self._wait_for(self._reset.call_async(ResetEpisode.Request(
            suite=suite, task=task, init_state=init_state)), _RESET_TIMEOUT, 'the reset')
        if not started.success:
            raise WorldVLAError(f'no episode: {started.message}')
        record.instruction = started.instruction
        goal = self._wait_for(self._run_task.send_goal_async(
            RunTask.Goal(instruction=started.instruction)), 10.0, 'the policy to take the task')
        if not goal.accepted:
            raise WorldVLAError('the policy refused the task; see its log')
        # A log file gets a line every few seconds, a terminal a smooth bar.
        interval = 0.1 if sys.stderr.isatty() else 5.0
        with tqdm(total=started.max_steps, desc=title, unit='step', dynamic_ncols=True,
                  mininterval=interval) as bar:
            self._watch(started.episode, bar)
        if self._episode.state != Episode.STATE_ABORTED:
            last_ns = to_ns(self._episode.header.stamp)
            self._spin_until(lambda: last_ns <= max(record.frames), 10.0, 'the last frame')
        record.finish(self._episode)
        self._wait_for(goal.cancel_goal_async(), 10.0, 'the task to end')
        self._record = None
        return record

    def _watch(self, number: int, bar: tqdm) -> None:
        """Spin until the episode has ended; a stall names what the policy says."""
        moved_at = time.monotonic()
        while True:
            self._spin_once()
            episode = self._episode
            if episode is None or episode.episode != number:
                continue
            if episode.step > bar.n:
                bar.update(episode.step - bar.n)
                moved_at = time.monotonic()
            if episode.state != Episode.STATE_RUNNING:
                bar.set_postfix_str('success' if episode.success else 'no success')
                return
            if time.monotonic() - moved_at > _STALL_TIMEOUT:
                said = self.status.halt_text if self.status else 'nothing'
                raise WorldVLAError(f'no control step for {_STALL_TIMEOUT:g} s; the policy says: '
                                    f'{said}')

    def _on_episode(self, message: Episode) -> None:
        self._episode = message
        if self._record is not None and message.step == 0:
            self._record.begin(to_ns(message.header.stamp))

    def _on_image(self, message: Image) -> None:
        if self._record is not None:
            frame = image_to_frame(message)
            self._record.add_frame(frame.stamp_ns, frame.image)

    def _on_chunk(self, message: ActionChunk) -> None:
        if self._record is not None:
            self._record.chunks.append(message)

    def _on_action(self, message: DeltaAction) -> None:
        if self._record is not None:
            self._record.add_action(message)

    def _on_status(self, message: PolicyStatus) -> None:
        self.status = message

    def _spin_once(self) -> None:
        self._executor.spin_once(timeout_sec=0.1)
        self._processes.check()

    def _spin_until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            self._spin_once()
            if time.monotonic() > deadline:
                raise WorldVLAError(f'waited {timeout:g} s in vain for {what}')

    def _wait_for(self, future: Future, timeout: float, what: str) -> Any:
        self._spin_until(future.done, timeout, what)
        return future.result()


def play_demo(options: argparse.Namespace, out: Path) -> list[dict[str, object]]:
    """Run all episodes; leave videos, chunks, a contact sheet and a JSON file in `out`."""
    policy, bridge = demo_graph({name: getattr(options, name) for name in DEMO_ARGUMENTS})
    bridge.parameters['max_steps'] = options.max_steps
    episodes = [(task, state) for task in options.tasks for state in options.init_states]
    rows, sheet = [], []
    with ProcessGroup([policy, bridge], out) as processes:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C ends the block
        try:
            client = DemoClient(processes)
            print('starting the policy and the simulator ...', flush=True)
            print(f'policy: {client.wait_until_ready().policy}', flush=True)
            for number, (task, state) in enumerate(episodes, 1):
                record = client.play(options.suite, task, state, f'{number}/{len(episodes)}')
                row = summary_row(record)
                rows.append({**row, 'policy': client.status.policy})
                stem = f'{options.suite}_task{task}_init{state}'
                record.save_video(out / f'{stem}.mp4')
                record.save_chunks(out / f'{stem}_chunks.npz')
                sheet.append((f'task {task}, initial state {state}: {record.instruction} - '
                              f'{record.state}',
                              evenly_spaced(record.ordered_frames, _SHEET_COLUMNS)))
        finally:
            rclpy.try_shutdown()
    save_contact_sheet(out / 'contact_sheet.png', sheet)
    (out / 'episodes.json').write_text(json.dumps(rows, indent=1) + '\n')
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """Print one line per episode, and which assets, policy and mode they belong to."""
    print(f'\n{"task":>4} {"init":>4} {"steps":>5}  {"outcome":<10} {"steps/s":>7} '
          f'{"p50 ms":>7} {"p99 ms":>7}  instruction')
    for row in rows:
        print(f'{row["task"]:>4} {row["init_state"]:>4} {row["steps"]:>5}  {row["outcome"]:<10} '
              f'{row["control_rate_hz"]:>7} {row["latency_p50_ms"]:>7} {row["latency_p99_ms"]:>7}'
              f'  {row["instruction"]}')
    ran = [row for row in rows if row['error'] is None]
    first = rows[0]
    print(f'\nsuccess {sum(bool(row["success"]) for row in ran)} of {len(ran)}, errors '
          f'{len(rows) - len(ran)} ({first["suite"]}, {first["assets"]} assets, {first["mode"]}, '
          f'{first["policy"]})')
    if 'random weights' in str(first['policy']):
        print('The weights are random, so the arm moves without aim and success is not expected: '
              'this shows the loop,\nnot a skill.')


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog='make demo ARGS=...', description=__doc__)
    parser.add_argument('--suite', default='libero_object')
    parser.add_argument('--tasks', type=parse_indices, default=[0, 4, 7], help='e.g. 0,3-5')
    parser.add_argument('--init-states', type=parse_indices, default=[0], help='e.g. 0-2')
    parser.add_argument('--max-steps', type=int, default=0,
                        help='control steps of an episode; 0: the published limit of the suite')
    parser.add_argument('--out', type=Path, default=Path('out/demo'))
    for name, argument in DEMO_ARGUMENTS.items():
        parser.add_argument(f'--{name}', default=argument.default, help=argument.doc,
                            choices=argument.choices or None)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the demo; errors are told in one line, not as a traceback."""
    options = parse_options(None)
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        rows = play_demo(options, options.out)
    except (WorldVLAError, OSError) as error:
        print(f'the demo failed: {error}\nlogs: {options.out}/*.log', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ninterrupted; all nodes are stopped', file=sys.stderr)
        return 130
    print_table(rows)
    print(f'videos, pictures and logs: {options.out}/')
    return 0

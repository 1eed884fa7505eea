# SPDX-License-Identifier: Apache-2.0
"""A client of policy node and bridge, as anyone could write it: reset, run the task, watch."""

from collections.abc import Callable
import time
from typing import Any

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import ListParameters
from rclpy.action.client import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.task import Future
from sensor_msgs.msg import Image

from worldvla_ros.action import RunTask
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE
from worldvla_ros.msg import ActionChunk, DeltaAction, Episode, PolicyStatus
from worldvla_ros.nodes.conversions import image_to_frame, to_ns
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.srv import ResetEpisode
from worldvla_sim.ros.recorder import EpisodeRecording
from worldvla_sim.ros.repeated_call import RepeatedCall

PLAYED_TO_THE_END = (Episode.STATE_SUCCESS, Episode.STATE_TIMEOUT)
"""States of an episode that ran; of any other the bridge may show no last picture."""

_RESET_TIMEOUT = 120.0  # [s] first use generates the asset pack
_GHOST_TIME = 25.0  # [s] a node that was killed is in the graph until its lease of 20 s ends
_ANSWER_TIMEOUT = 60.0  # [s] of what takes no time but on a machine that others use up


class EpisodeClient(Node):
    """
    Plays episodes through the two nodes and keeps a record of each.

    :param processes: the nodes; one that ends is an error at once
    :param frames: keep the pictures, too
    :param start_timeout: [s] load and warm-up of the policy on a slow machine
    :param stall_timeout: [s] without a control step
    """

    def __init__(self, processes: ProcessGroup, *, frames: bool = True,
                 start_timeout: float = 120.0, stall_timeout: float = 60.0) -> None:
        super().__init__('worldvla_episode_client')
        self._processes = processes
        self._keep_frames = frames
        self._start_timeout = start_timeout
        self._stall_timeout = stall_timeout
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self)
        self._record: EpisodeRecording | None = None
        self._episode: Episode | None = None
        self._status: PolicyStatus | None = None
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.create_subscription(Episode, 'episode', self._on_episode, latched)
        if frames:
            self.create_subscription(Image, 'camera/agentview/image_raw', self._on_image, 100)
        self.create_subscription(ActionChunk, f'/{POLICY_NODE}/action_chunk', self._on_chunk, 10)
        self.create_subscription(DeltaAction, f'/{POLICY_NODE}/action', self._on_action, 10)
        self.create_subscription(PolicyStatus, f'/{POLICY_NODE}/status', self._on_status, 10)
        self._reset = self.create_client(ResetEpisode, f'/{BRIDGE_NODE}/reset')
        self._run_task = ActionClient(self, RunTask, f'/{POLICY_NODE}/run_task')
        # Last, so that their answers tell that the others are known, see RepeatedCall.
        self._policy_state = self.create_client(GetState, f'/{POLICY_NODE}/get_state')
        self._bridge_probe = self.create_client(ListParameters, f'/{BRIDGE_NODE}/list_parameters')

    @property
    def policy(self) -> str:
        """What the policy is, in its own words; '' while it has said nothing."""
        return self._status.policy if self._status else ''

    def wait_until_ready(self) -> None:
        """Wait for both nodes; WorldVLAError where another graph answers to the same names."""
        timeout = self._start_timeout
        # While it loads the policy does not answer; unconfigured afterwards means it could not.
        self._spin_until(self._policy_state.service_is_ready, timeout, 'the policy node')
        loading = RepeatedCall(self._policy_state, GetState.Request())
        self._spin_until(loading.answered, timeout, 'the policy to load')
        if loading.result.current_state.id == State.PRIMARY_STATE_UNCONFIGURED:
            raise WorldVLAError('the policy could not be loaded: '
                                + self._processes.last_message(POLICY_NODE))
        starting = RepeatedCall(self._bridge_probe, ListParameters.Request())
        self._spin_until(lambda: self._status is not None and self._reset.service_is_ready()
                         and self._run_task.server_is_ready() and starting.answered(), timeout,
                         'the policy and the simulator to be ready')
        self._refuse_twins()

    def play(self, suite: str, task: int, init_state: int, *, seed: int = 0,
             on_step: Callable[[Episode], None] = lambda episode: None) -> EpisodeRecording:
        """
        Play one episode and return its record, also of one that ended as an error.

        Raises WorldVLAError if it cannot be begun, stalls, or another graph would take part.

        :param on_step: called with each control step, and at the end
        """
        self._refuse_twins()
        self._record = record = EpisodeRecording()  # now: the first frame precedes the answer
        started = self._wait_for(self._reset.call_async(ResetEpisode.Request(
            suite=suite, task=task, init_state=init_state, seed=seed)), _RESET_TIMEOUT,
            'the reset')
        if not started.success:
            raise WorldVLAError(f'no episode: {started.message}')
        record.instruction = started.instruction
        goal = self._wait_for(self._run_task.send_goal_async(
            RunTask.Goal(instruction=started.instruction)), _ANSWER_TIMEOUT,
            'the policy to take the task')
        if not goal.accepted:
            raise WorldVLAError('the policy refused the task; see its log')
        final = self._watch(started.episode, goal.get_result_async(), on_step)
        if self._keep_frames and final.state in PLAYED_TO_THE_END:
            last_ns = to_ns(final.header.stamp)
            self._spin_until(lambda: last_ns <= max(record.frames, default=-1), _ANSWER_TIMEOUT,
                             'the last frame')
        record.finish(final)
        self._wait_for(goal.cancel_goal_async(), _ANSWER_TIMEOUT, 'the task to end')
        self._record = None
        return record

    def _refuse_twins(self) -> None:
        """Raise WorldVLAError where two nodes keep a name that this client calls."""
        deadline = time.monotonic() + _GHOST_TIME
        while twins := self._twins():
            if time.monotonic() > deadline:
                raise WorldVLAError(
                    f'{twins} in ROS domain {self.context.get_domain_id()}, and one is needed: '
                    f'each would take part in the episodes. End the other graph, or give this one '
                    f'a ROS_DOMAIN_ID of its own')
            self._spin_once()

    def _twins(self) -> str:
        """Say which name more than one node has; empty if none."""
        nodes = self.get_node_names_and_namespaces()
        for name, service in ((POLICY_NODE, 'run_task/_action/send_goal'),
                              (BRIDGE_NODE, 'reset')):
            found = max(nodes.count((name, '/')), self.count_services(f'/{name}/{service}'))
            if found > 1:
                return f'{found} nodes answer to /{name}'
        return ''

    def _watch(self, number: int, ended: Future, on_step: Callable[[Episode], None]) -> Episode:
        """Spin until the episode has ended; return that. A stall names what the policy says."""
        moved_at, step = time.monotonic(), 0
        while True:
            self._spin_once()
            episode = self._episode
            if episode is not None and episode.episode == number:
                if episode.step > step or episode.state != Episode.STATE_RUNNING:
                    moved_at, step = time.monotonic(), episode.step
                    on_step(episode)
                if episode.state != Episode.STATE_RUNNING:
                    return episode
            if ended.done():
                raise WorldVLAError(f'the policy ended the task after {step} steps: '
                                    f'{ended.result().result.message}')
            if time.monotonic() - moved_at > self._stall_timeout:
                said = self._status.halt_text if self._status else 'nothing'
                raise WorldVLAError(f'no control step for {self._stall_timeout:g} s; the policy '
                                    f'says: {said}')

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
            self._record.add_chunk(message)

    def _on_action(self, message: DeltaAction) -> None:
        if self._record is not None:
            self._record.add_action(message)

    def _on_status(self, message: PolicyStatus) -> None:
        self._status = message

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

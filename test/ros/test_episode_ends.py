# SPDX-License-Identifier: Apache-2.0
"""The client of an episode reports how it ended, whatever the bridge still shows of it."""

import threading
import types

import numpy as np
import pytest
import rclpy
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from worldvla_ros.action import RunTask
from worldvla_ros.datatypes import Frame
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE
from worldvla_ros.msg import ActionChunk, Episode
from worldvla_ros.nodes.conversions import frame_to_image, to_ns, to_time
from worldvla_ros.srv import ResetEpisode
from worldvla_sim.commands import EXIT_ERRORS
from worldvla_sim.ros import demo, episode_client
from worldvla_sim.ros.episode_client import EpisodeClient
from worldvla_sim.ros.recorder import EpisodeRecording, summary_row

FIRST_NS, LAST_NS = 1_000_000_000, 1_150_000_000
PERIOD_NS = 50_000_000


class Graph(Node):
    """Bridge and policy of one episode; it ends as told once the policy has the task."""

    def __init__(self, ends_as):
        super().__init__(BRIDGE_NODE)
        self.ends_as = ends_as
        self.task_over, self.followed = threading.Event(), threading.Event()
        latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.episodes = self.create_publisher(Episode, 'episode', latched)
        self.images = self.create_publisher(Image, 'camera/agentview/image_raw', 10)
        self.create_service(ResetEpisode, '~/reset', self.start)
        self.tasks = ActionServer(self, RunTask, f'/{POLICY_NODE}/run_task', self.follow,
                                  callback_group=ReentrantCallbackGroup(),
                                  cancel_callback=self.cancel)

    def say(self, stamp_ns, **fields):
        """Publish the state of the episode, as the bridge does."""
        self.episodes.publish(Episode(header=Header(stamp=to_time(stamp_ns)), episode=1, **fields))

    def start(self, request, response):
        """Show the first frame."""
        self.say(FIRST_NS, state=Episode.STATE_RUNNING)
        if self.ends_as.get('shows_frames', True):
            self.images.publish(
                frame_to_image(Frame(np.zeros((8, 8, 3), np.uint8), FIRST_NS), 'agentview'))
        response.success, response.episode = True, 1
        return response

    def follow(self, goal):
        """End the episode; the task ends when the client cancels it."""
        self.say(LAST_NS, state=self.ends_as['state'], step=3, error=self.ends_as['error'])
        assert self.task_over.wait(30)
        goal.canceled()
        self.followed.set()
        return RunTask.Result()

    def cancel(self, goal):
        """Let the task end."""
        self.task_over.set()
        return CancelResponse.ACCEPT


@pytest.fixture
def play(domain_id):
    """Play an episode that ends as told; return its record."""
    rclpy.init(domain_id=domain_id)
    executor = MultiThreadedExecutor(num_threads=2)
    nodes = []

    def play(**ends_as):
        graph = Graph(ends_as)
        executor.add_node(graph)
        threading.Thread(target=executor.spin, daemon=True).start()
        client = EpisodeClient(types.SimpleNamespace(check=lambda: None), stall_timeout=30)
        nodes.extend((client, graph))
        client._spin_until(
            lambda: client._reset.service_is_ready() and client._run_task.server_is_ready()
            and graph.images.get_subscription_count() and graph.episodes.get_subscription_count(),
            30, 'the graph')
        return client.play('libero_object', 0, 0)
    yield play
    nodes[-1].followed.wait(10)
    executor.shutdown()
    for node in nodes:
        if isinstance(node, Graph):
            node.tasks.destroy()  # else it keeps the node, and /rosout of the name, for ever
        node.destroy_node()
    rclpy.shutdown()


@pytest.mark.timeout(100)
@pytest.mark.parametrize('ends_as', [
    {'state': Episode.STATE_ERROR, 'error': 'the physics is on fire'},
    {'state': Episode.STATE_ERROR, 'error': 'before a frame came', 'shows_frames': False},
    {'state': Episode.STATE_ABORTED, 'error': ''}])
def test_an_episode_without_a_last_picture_is_reported_as_it_ended(play, ends_as, monkeypatch):
    monkeypatch.setattr(episode_client, '_ANSWER_TIMEOUT', 10.0)
    record = play(**ends_as)
    assert (record.final.state, record.final.error) == (ends_as['state'], ends_as['error'])
    assert record.final.step == 3


def test_what_comes_after_the_last_frame_is_no_part_of_the_episode():
    """Pins a bug: a chunk that was planned before the policy heard of the end was kept."""
    record, last_ns = EpisodeRecording(), 5 * PERIOD_NS
    def come(stamp_ns):
        record.add_frame(stamp_ns, np.zeros((2, 2, 3), np.uint8))
        record.add_chunk(ActionChunk(frame_stamps=[to_time(stamp_ns)], horizon=5))
    for stamp_ns in (last_ns - PERIOD_NS, last_ns, last_ns + 20 * PERIOD_NS):
        come(stamp_ns)
    record.finish(Episode(state=Episode.STATE_TIMEOUT, header=Header(stamp=to_time(last_ns))))
    come(last_ns)
    come(last_ns + PERIOD_NS)
    assert sorted(record.frames) == [last_ns - PERIOD_NS, last_ns]
    assert [to_ns(chunk.frame_stamps[-1]) for chunk in record.chunks] == [last_ns - PERIOD_NS]


def test_the_demo_tells_an_episode_that_ended_as_an_error(monkeypatch, tmp_path, capsys):
    record = EpisodeRecording(instruction='pick up the milk')
    record.finish(Episode(state=Episode.STATE_ERROR, task=4, init_state=2, error='on fire'))
    monkeypatch.setattr(demo, 'play_demo',
                        lambda *_: [{**summary_row(record), 'policy': 'worldvla-mini'}])
    monkeypatch.setattr('sys.argv', ['demo', '--out', str(tmp_path)])
    assert demo.main() == EXIT_ERRORS
    assert 'error in task 4, initial state 2: on fire' in capsys.readouterr().out


def test_the_demo_names_its_options_as_all_commands_do():
    assert demo.parse_options(['--image-size', '64', '--max-steps', '9']).image_size == '64'

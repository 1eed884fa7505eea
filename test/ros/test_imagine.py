# SPDX-License-Identifier: Apache-2.0
"""~/imagine: what the world model expects to see, beside a policy that goes on to hold still."""

import os
import signal
import subprocess
import time

from ament_index_python.packages import get_package_prefix
import cv2
import numpy as np
from policy_client import NODE, TASK, is_zero, noise, picture
import pytest
from sensor_msgs.msg import Image
from state_policies import attentive_policy

from worldvla_ros.datatypes import Frame
from worldvla_ros.nodes.conversions import image_to_frame, to_ns
from worldvla_ros.policy.world_model import WorldModel
from worldvla_ros.srv import Imagine
from worldvla_ros.training.run_folder import save_pretrained

ACTIONS = np.linspace(-0.9, 0.9, 14, dtype=np.float32).reshape(2, 7)
PERIOD_NS = 20_000_000  # of the client's RATE


@pytest.fixture(scope='module')
def pretrained():
    """A tiny policy with weights so large that all it sees counts."""
    return attentive_policy(reads_state=False)


@pytest.fixture(scope='module')
def checkpoint(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp('tiny')
    save_pretrained(pretrained, folder)
    return str(folder)


@pytest.fixture
def start(start_policy, checkpoint, client, wait_for):
    """Start a node whose world model is loaded, before a camera that shows one picture."""
    def start(**values):
        node = start_policy(**{'backend': 'inproc', 'checkpoint': checkpoint, 'world_model': True,
                               'worker__threads': 1, 'dtype': 'float32', 'obs__frozen_after': -1,
                               **values})
        client.shoot = lambda number: picture(client, noise(0))
        wait_for(lambda: node._loop.controller.newest_ns)
        return node
    return start


def imagine(client, actions=(), instruction=''):
    return client.call(Imagine, 'imagine', Imagine.Request(
        actions=np.ravel(actions).tolist(), instruction=instruction))


def begin(client):
    """Call for the longest rollout; returns the future once its first frame is there."""
    rollout = client.ask(Imagine, 'imagine', Imagine.Request(actions=[0.1] * 7 * 50))
    shown = []
    client.node.create_subscription(Image, f'{NODE}/imagined_image', shown.append, 10)
    client.wait_for(lambda: shown)
    return rollout


def assert_ended_early(response, why):
    assert not response.success and why in response.message
    assert 0 < len(response.frames) < 50
    assert len(response.entropy) == len(response.frames) == len(response.actions) / 7


def images_of(messages):
    return np.stack([image_to_frame(message).image for message in messages])


def test_the_frames_are_those_of_the_world_model_and_come_on_a_topic_one_by_one(
        start, client, pretrained):
    start()
    shown = []
    client.node.create_subscription(Image, f'{NODE}/imagined_image', shown.append, 10)
    client.wait_for(lambda: client.node.count_publishers(f'{NODE}/imagined_image'))
    response = imagine(client, ACTIONS)
    assert response.success, response.message
    world = WorldModel(pretrained, reencode=False)
    world.reset(Frame(noise(0), 0))
    expected = [world.step(action) for action in ACTIONS]
    np.testing.assert_array_equal(images_of([response.observation]), [noise(0)])
    np.testing.assert_array_equal(images_of(response.frames),
                                  [one.frame.image for one in expected])
    np.testing.assert_allclose(response.entropy, [one.entropy.mean() for one in expected],
                               rtol=1e-5)
    np.testing.assert_array_equal(np.reshape(response.actions, (-1, 7)), ACTIONS)
    start_ns = to_ns(response.observation.header.stamp)
    assert [to_ns(one.header.stamp) - start_ns for one in response.frames] == [
        PERIOD_NS, 2 * PERIOD_NS]
    assert response.latency > 0
    client.wait_for(lambda: len(shown) == 2)
    np.testing.assert_array_equal(images_of(shown), images_of(response.frames))
    assert all(is_zero(action) for action in client.actions)


def test_without_actions_it_imagines_what_the_policy_would_do(start, client):
    start(worker__threads=1)
    response = imagine(client, instruction=TASK)
    assert response.success, response.message
    assert len(response.frames) == 5 and len(response.actions) == 5 * 7
    again = imagine(client, np.float32(response.actions))
    np.testing.assert_array_equal(images_of(again.frames), images_of(response.frames))
    assert 'no instruction' in imagine(client).message
    assert not client.chunks and all(is_zero(action) for action in client.actions)


@pytest.mark.parametrize('actions, complaint', [
    (np.zeros(8), 'got 8 values'), (np.zeros(51 * 7), 'N from 0 to 50'),
    ([np.nan] * 7, 'got nan'), ([0.0] * 6 + [1.5], 'got 1.5')])
def test_what_are_no_actions_is_refused(start, client, actions, complaint):
    start()
    response = imagine(client, actions)
    assert not response.success and complaint in response.message and not response.frames


def test_in_real_time_a_robot_that_follows_an_instruction_keeps_its_chunks(start, client):
    start()
    client.instruct()
    client.next_motion()
    assert 'pause it' in imagine(client, ACTIONS).message
    assert 'pause it' in imagine(client).message, 'before the policy is asked for its chunk'
    assert client.pause(True).success
    assert imagine(client, ACTIONS).success
    assert client.pause(False).success
    client.next_motion()


def test_in_lockstep_the_simulator_waits_so_both_take_turns(start, client):
    start(control__mode='lockstep')
    client.instruct()
    client.next_motion()
    known = len(client.chunks)
    assert imagine(client, np.tile(ACTIONS, (10, 1))).success
    assert len(client.chunks) > known, 'the loop had its turns meanwhile'


def test_an_instruction_that_comes_meanwhile_ends_the_rollout(start, client):
    start()
    rollout = begin(client)
    client.instruct()
    client.next_motion()
    client.wait_for(rollout.done)
    response = rollout.result()
    assert_ended_early(response, 'follows an instruction')


def test_a_newer_call_takes_over_and_is_not_mixed_up_with_the_older(start, client):
    start()
    expected = images_of(imagine(client, ACTIONS).frames)
    rollout = begin(client)
    for refused, why in (([1.5] * 7, 'got 1.5'), ([], 'there is no instruction')):
        assert why in imagine(client, refused).message
    time.sleep(0.2)  # a frame or two
    assert not rollout.done(), 'a call that is refused ends nothing'
    newer = imagine(client, ACTIONS)
    np.testing.assert_array_equal(images_of(newer.frames), expected)
    client.wait_for(rollout.done)
    assert_ended_early(rollout.result(), 'newer call')


@pytest.mark.parametrize('end, why', [
    (lambda client: client.transition('deactivate'), 'deactivated'),
    (lambda client: client.transition('deactivate') and client.transition('cleanup'),
     'deactivated')])
def test_a_rollout_ends_with_the_node_and_the_next_one_works(start, client, end, why):
    start()
    expected = images_of(imagine(client, ACTIONS).frames)
    rollout = begin(client)
    end(client)
    client.wait_for(rollout.done)
    assert_ended_early(rollout.result(), why)
    if client.state() == 'unconfigured':
        client.transition('configure')
    client.transition('activate')
    client.wait_for(lambda: (again := imagine(client, ACTIONS)).success and np.array_equal(
        images_of(again.frames), expected))


def test_a_worker_that_dies_ends_its_rollout_and_its_successor_serves_the_next(start, client):
    node = start(backend='worker')
    expected = images_of(imagine(client, ACTIONS).frames)
    rollout = begin(client)
    os.kill(node._backend.process_id, signal.SIGKILL)
    client.wait_for(rollout.done)
    assert_ended_early(rollout.result(), 'worker')  # died, or is loading again already
    client.wait_for(lambda: (again := imagine(client, ACTIONS)).success and np.array_equal(
        images_of(again.frames), expected), timeout=60)
    assert all(is_zero(action) for action in client.actions)
    client.transition('deactivate')
    client.transition('cleanup')  # while the executor runs, which the end of the worker wakes


def test_neither_a_reset_nor_the_estop_disturbs_a_rollout_or_moves_the_robot(start, client):
    start()
    rollout = begin(client)
    assert client.trigger('reset_history').success
    client.estop(True)
    client.wait_for(rollout.done, timeout=60)
    assert rollout.result().success and len(rollout.result().frames) == 50
    assert all(is_zero(action) for action in client.actions)


def test_who_cannot_imagine_says_why(start, start_policy, client):
    start(world_model=False)
    assert 'world_model:=true' in imagine(client, ACTIONS).message
    assert 'world_model:=true' in imagine(client).message, 'and not what else is missing'
    client.shoot = None
    client.transition('deactivate')
    assert 'not active' in imagine(client, ACTIONS).message
    client.transition('cleanup')
    assert 'not configured' in imagine(client, ACTIONS).message


def test_without_a_fresh_frame_there_is_nothing_to_start_from(start, client):
    start(obs__max_age=0.1)
    client.shoot = None
    client.wait_for(lambda: 'older than max_age' in imagine(client, ACTIONS).message)


# --- the program ------------------------------------------------------------------------------


def run_program(*arguments):
    return subprocess.run(
        [f'{get_package_prefix("worldvla_ros")}/lib/worldvla_ros/imagine', *arguments],
        capture_output=True, text=True, timeout=60)


def test_the_program_draws_the_frames(start, client, tmp_path):
    start()
    np.savez(tmp_path / 'chunks.npz', actions=np.tile(ACTIONS, (4, 1, 1)))
    done = run_program('--actions', str(tmp_path / 'chunks.npz'), '--steps', '7',
                       '--out', str(tmp_path / 'new' / 'imagined.png'))
    assert done.returncode == 0, done.stderr
    assert '7 frames' in done.stdout
    drawn = cv2.imread(str(tmp_path / 'new' / 'imagined.png'))
    assert drawn.shape == (2 * 210, 6 * 192, 3)
    assert (drawn[-1, -1] == 255).all(), 'eight tiles, so the second row ends empty'
    assert (drawn[-1, 2 * 192 - 1] != 255).any()


def test_the_program_says_what_it_lacks(start, client, tmp_path):
    done = run_program('--wait', '0.2')
    assert done.returncode == 1 and 'is the policy node running' in done.stderr
    start(world_model=False)
    done = run_program('--out', str(tmp_path / 'no.png'), '--instruction', TASK)
    assert done.returncode == 1 and 'world_model:=true' in done.stderr
    assert not (tmp_path / 'no.png').exists()
    for wrong in (('--actions', str(tmp_path / 'missing.npz')), ('--out', 'no_picture'),
                  ('--steps', '0')):
        done = run_program(*wrong)
        assert done.returncode == 2 and wrong[1] in done.stderr.splitlines()[-1]

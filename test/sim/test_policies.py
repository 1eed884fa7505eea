# SPDX-License-Identifier: Apache-2.0
"""A checkpoint plays a simulator: frames, chunks, cameras and threads that it is given."""

import numpy as np
import pytest

from worldvla_ros.datatypes import ActionChunk
from worldvla_ros.errors import ConfigError
from worldvla_sim import policies
from worldvla_sim.libero_env import NO_OP, LiberoEnv
from worldvla_sim.runner import EpisodeJob, EpisodeRunner, EvaluationSettings, RunOptions
from worldvla_sim.workers import threads_per_worker


class StubPolicy:
    """Stands for a checkpoint: chunks of three, numbered by their inference."""

    history_length, image_size, horizon = 2, 32, 3
    reads_wrist = reads_state = False
    description = 'stub, sha256:0'

    def __init__(self):
        self.seen, self.wrist = [], []

    def predict_chunk(self, observation):
        self.wrist.append([frame.wrist for frame in observation.frames])
        self.seen.append([frame.stamp_ns for frame in observation.frames])
        actions = np.zeros((self.horizon, 7), np.float32)
        actions[:, 0] = len(self.seen) / 10
        return ActionChunk(actions, np.zeros((0, 7), np.int32), np.zeros((0, 7), np.float32),
                           observation.instruction, tuple(self.seen[-1]))


@pytest.fixture
def stub(monkeypatch):
    from worldvla_ros.policy.policy import WorldVLAPolicy
    stub = StubPolicy()
    monkeypatch.setattr(WorldVLAPolicy, 'from_pretrained', lambda path, device: stub)
    return stub


@pytest.mark.parametrize(('execute', 'expected'), [
    (1, [0.1, 0.2, 0.3, 0.4]), (2, [0.1, 0.1, 0.2, 0.2]), (None, [0.1, 0.1, 0.1, 0.2])])
def test_execute_says_how_many_actions_run_before_the_next_inference(execute, expected, stub):
    policy = policies.CheckpointPolicy('anywhere', execute=execute)
    with LiberoEnv('libero_object', 0, image_size=policy.image_size) as env:
        observation = env.reset(0, settle_steps=0)
        policy.start(env, observation)
        taken = [round(float(policy.act(observation)[0]), 1) for _ in range(4)]
    assert taken == expected


@pytest.mark.parametrize('execute', [0, 6, -1])
def test_execute_outside_the_chunk_is_refused(execute, checkpoint):
    policies.policy_factory(checkpoint, execute=5)
    with pytest.raises(ConfigError, match='from 1 to 5'):
        policies.policy_factory(checkpoint, execute=execute)
    with pytest.raises(ConfigError, match='hold has none'):
        policies.policy_factory('hold', execute=2)


def test_torch_has_one_thread_in_each_of_several_workers(stub, monkeypatch):
    import torch
    before = torch.get_num_threads()
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    try:
        for workers, threads in ((1, 3), (2, 1)):
            policies.CheckpointPolicy('anywhere', threads=threads_per_worker(workers))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    monkeypatch.delenv('OMP_NUM_THREADS')
    assert threads_per_worker(1) == 1


def test_checkpoint_executes_whole_chunks_and_sees_frames_one_period_apart(stub):
    policy = policies.CheckpointPolicy('anywhere')
    with LiberoEnv('libero_object', 0, image_size=policy.image_size) as env:
        observation = env.reset(0, settle_steps=0)
        policy.start(env, observation)
        taken = []
        for _ in range(7):
            taken.append(round(float(policy.act(observation)[0]), 1))
            observation = env.step(NO_OP)
        policy.start(env, observation)
        policy.act(observation)
    assert taken == [0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.3]
    assert stub.seen[:3] == [[0], [100_000_000, 150_000_000], [250_000_000, 300_000_000]]
    assert len(stub.seen[3]) == 1, 'a new episode must not see frames of the last one'


def test_a_checkpoint_that_reads_the_wrist_camera_is_shown_it(stub, checkpoint):
    stub.reads_wrist = True
    settings = EvaluationSettings(checkpoint, 'libero_object', 'builtin', max_steps=5)
    runner = EpisodeRunner(settings, RunOptions())
    try:
        assert runner(EpisodeJob(0, 0)).steps == 5
    finally:
        runner.close()
    assert [len(pictures) for pictures in stub.wrist] == [1, 2]
    pictures = [picture for seen in stub.wrist for picture in seen]
    assert all(picture.shape == (32, 32, 3) and picture.std() > 10 for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[2])

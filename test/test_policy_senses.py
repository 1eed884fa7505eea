# SPDX-License-Identifier: Apache-2.0
"""What a policy senses beside its frames: the state of the arm, and the wrist camera."""

from dataclasses import replace

import numpy as np
import pytest
from state_policies import attentive_policy
from tiny_models import static_chunk_decoder

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import CheckpointError, FrameError, StateError
from worldvla_ros.model.generate import generate_chunk
from worldvla_ros.policy.policy import WorldVLAPolicy

TASK = 'pick up the milk and place it in the basket'


def frame(seed):
    """Return a frame of coarse noise, so that its codes differ from those of others."""
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Frame(blocks.repeat(8, 0).repeat(8, 1), seed)


# --- the state of the arm ---------------------------------------------------------------------


@pytest.fixture(scope='module')
def feeling_policy():
    return WorldVLAPolicy(attentive_policy())


def feel(policy, state, frames=(1, 2)):
    observation = Observation(tuple(frame(one) for one in frames), TASK, state)
    return policy.predict_chunk(observation).token_ids


def test_a_chunk_depends_on_the_state_of_the_arm(feeling_policy):
    low, high = np.full(7, -0.5), np.full(7, 0.5)
    assert feeling_policy.reads_state
    assert (feel(feeling_policy, low) != feel(feeling_policy, high)).any()
    np.testing.assert_array_equal(feel(feeling_policy, low), feel(feeling_policy, low.copy()))
    np.testing.assert_array_equal(feel(feeling_policy, 9 * high), feel(feeling_policy, 8 * high))


def test_the_state_is_that_of_the_published_prompt(feeling_policy):
    pretrained, state = feeling_policy.pretrained, np.linspace(-1, 1, 7)
    prompt = pretrained.prompts.action(
        TASK, [pretrained.encode(frame(one).image) for one in (1, 2)],
        pretrained.state_tokenizer.encode(state))
    np.testing.assert_array_equal(feel(feeling_policy, state),
                                  generate_chunk(pretrained.model, prompt, 5).numpy())


def test_a_state_that_changed_since_the_preparation_counts(feeling_policy):
    for step, state in enumerate(np.linspace(-1, 1, 4 * 7).reshape(4, 7)):
        feeling_policy.prepare([frame(step)], TASK)
        other = WorldVLAPolicy(feeling_policy.pretrained)
        frames = (step, step + 1)
        np.testing.assert_array_equal(feel(feeling_policy, state, frames),
                                      feel(other, state, frames))


def test_a_missing_state_is_refused_and_a_needless_one_changes_nothing(feeling_policy):
    with pytest.raises(StateError, match=r'Observation\.state'):
        feel(feeling_policy, None)
    assert feel(feeling_policy, np.zeros(7)).shape == (5, 7), 'it recovers'
    policy = WorldVLAPolicy(attentive_policy(reads_state=False))
    assert not policy.reads_state
    np.testing.assert_array_equal(feel(policy, np.ones(7)), feel(policy, None))


def test_a_policy_that_reads_the_state_warms_up(feeling_policy):
    before = feel(feeling_policy, np.zeros(7))
    feeling_policy.warm_up()
    np.testing.assert_array_equal(feel(feeling_policy, np.zeros(7)), before)


def test_a_state_without_tokens_for_it_is_refused():
    blind = attentive_policy(reads_state=False)
    settings = replace(blind.settings, state_minimum=(0.0,) * 7, state_maximum=(1.0,) * 7)
    with pytest.raises(CheckpointError, match='no tokens'):
        replace(blind, settings=settings)
    with pytest.raises(CheckpointError, match='go together'):
        replace(blind.settings, state_minimum=(0.0,) * 7)


# --- the wrist camera ---------------------------------------------------------------------------


@pytest.fixture(scope='module')
def wrist_policy():
    return WorldVLAPolicy(attentive_policy(reads_state=False, reads_wrist=True))


def look(policy, *numbers, instruction=TASK):
    """Return the actions for frames and pictures of the wrist camera of these numbers."""
    frames = tuple(replace(frame(one),
                           wrist=None if wrist is None else frame(wrist).image)
                   for one, wrist in numbers)
    return policy.predict_chunk(Observation(frames, instruction)).token_ids


def test_a_chunk_depends_on_each_picture_of_the_wrist_camera(wrist_policy):
    assert wrist_policy.reads_wrist
    chunk = look(wrist_policy, (1, 11), (2, 12))
    assert (chunk != look(wrist_policy, (1, 11), (2, 13))).any()
    assert (chunk != look(wrist_policy, (1, 13), (2, 12))).any()
    np.testing.assert_array_equal(chunk, look(wrist_policy, (1, 11), (2, 12)))


def test_each_frame_is_followed_by_the_picture_of_the_wrist_camera(wrist_policy):
    pretrained = wrist_policy.pretrained
    prompt = pretrained.prompts.action(
        TASK, [pretrained.encode(frame(one).image) for one in (1, 11, 2, 12)])
    np.testing.assert_array_equal(look(wrist_policy, (1, 11), (2, 12)),
                                  generate_chunk(pretrained.model, prompt, 5).numpy())


def test_the_first_frame_of_an_episode_needs_one_picture_of_each_camera(wrist_policy):
    pretrained = wrist_policy.pretrained
    prompt = pretrained.prompts.action(
        TASK, [pretrained.encode(frame(one).image) for one in (1, 11)])
    np.testing.assert_array_equal(look(wrist_policy, (1, 11)),
                                  generate_chunk(pretrained.model, prompt, 5).numpy())


def test_pictures_of_both_cameras_are_computed_ahead_and_encoded_once(wrist_policy, monkeypatch):
    encoded = []
    encode = type(wrist_policy.pretrained).encode

    def counted(self, image):
        encoded.append(image.copy())
        return encode(self, image)
    fresh = WorldVLAPolicy(wrist_policy.pretrained)
    expected = [look(WorldVLAPolicy(wrist_policy.pretrained), (step, step + 10),
                     (step + 1, step + 11)) for step in range(3)]
    monkeypatch.setattr(type(wrist_policy.pretrained), 'encode', counted)
    for step in range(3):
        ahead = replace(frame(step), wrist=frame(step + 10).image)
        fresh.prepare([ahead], TASK)
        np.testing.assert_array_equal(
            look(fresh, (step, step + 10), (step + 1, step + 11)), expected[step])
    assert len(encoded) == 8, 'four frames, two cameras'


def test_a_missing_wrist_picture_is_refused_and_a_needless_one_ignored(wrist_policy):
    with pytest.raises(FrameError, match=r'Frame\.wrist'):
        look(wrist_policy, (1, 11), (2, None))
    assert look(wrist_policy, (1, 11)).shape == (5, 7), 'it recovers'
    policy = WorldVLAPolicy(attentive_policy(reads_state=False))
    assert not policy.reads_wrist
    np.testing.assert_array_equal(look(policy, (1, 11)), look(policy, (1, None)))


def test_a_policy_that_reads_the_wrist_camera_warms_up(wrist_policy):
    before = look(wrist_policy, (1, 11), (2, 12))
    wrist_policy.warm_up()
    np.testing.assert_array_equal(look(wrist_policy, (1, 11), (2, 12)), before)


def test_the_engine_of_a_gpu_takes_both_cameras_with_and_without_preparation(
        wrist_policy, monkeypatch):
    expected = [look(WorldVLAPolicy(wrist_policy.pretrained), (step, step + 10),
                     (step + 1, step + 11)) for step in range(3)]
    monkeypatch.setattr('worldvla_ros.policy.policy.chunk_decoder', static_chunk_decoder)
    for prepared in (False, True):
        engine = WorldVLAPolicy(wrist_policy.pretrained)
        engine.warm_up()
        for step in range(3):
            if prepared:
                engine.prepare([replace(frame(step), wrist=frame(step + 10).image)], TASK)
            np.testing.assert_array_equal(
                look(engine, (step, step + 10), (step + 1, step + 11)), expected[step])

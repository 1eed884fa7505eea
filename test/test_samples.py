# SPDX-License-Identifier: Apache-2.0
"""Training sequences: what they hold, what of them is learned, and which episodes are used."""

import numpy as np
import pytest
from training_data import episode, write_hdf5

from worldvla_ros.tokens.sequence import PromptBuilder, parse_action_chunk, parse_image_block
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH, Vocabulary
from worldvla_ros.training.samples import SampleBuilder, labels_that_hold, moving_steps
from worldvla_ros.training.tokenise import filtered_episodes

TEXT = TextTokenizer.train(['pick up the red block'], max_tokens=300)
VOCABULARY = Vocabulary.compact(TEXT.num_tokens, num_codes=64)
PROMPTS = PromptBuilder(TEXT, VOCABULARY)
STEPS = 9
RNG = np.random.default_rng(0)
CODES = RNG.integers(0, 64, (STEPS, 4, 4)).astype(np.uint16)
ACTIONS = RNG.integers(VOCABULARY.bins.start, VOCABULARY.bins.stop, (STEPS, 7))
IMAGE_LENGTH = 4 * (4 + 1) + 4


def builder(history_length=2, horizon=5, world_rounds=1, world_stride=1, short_chunks=False):
    return SampleBuilder(PROMPTS, history_length, horizon, world_rounds, world_stride,
                         short_chunks)


def build(one, branch, start, stride=1):
    return one.build(branch, 'pick', CODES, ACTIONS, start, stride=stride)


def learned(sample):
    return sample.ids[sample.labelled]


@pytest.mark.parametrize('history_length', [1, 2, 4])
@pytest.mark.parametrize('start', [0, 1, 3])
def test_an_action_sample_is_the_prompt_of_inference_and_the_chunk(history_length, start):
    sample = build(builder(history_length), 'action', start)
    images = CODES[max(0, start - history_length + 1):start + 1]
    assert len(images) == min(history_length, start + 1)
    prompt = PROMPTS.action('pick', list(images))
    np.testing.assert_array_equal(sample.ids[:len(prompt)], prompt)
    assert not sample.labelled[:len(prompt)].any() and sample.labelled[len(prompt):].all()


def test_of_a_chunk_the_first_labels_alone_may_be_learned():
    whole = build(builder(), 'action', 2)
    part = builder().build('action', 'pick', CODES, ACTIONS, 2, learned=2)
    np.testing.assert_array_equal(part.ids, whole.ids)
    chunk = np.flatnonzero(whole.labelled)
    kept = np.r_[chunk[:2 * ACTION_BLOCK_LENGTH], chunk[-1]]  # and the end of the chunk
    np.testing.assert_array_equal(np.flatnonzero(part.labelled), kept)


def test_the_state_of_the_newest_frame_stands_behind_the_images():
    vocabulary = VOCABULARY.with_state()
    prompts = PromptBuilder(TEXT, vocabulary)
    states = np.arange(STEPS * 7).reshape(STEPS, 7) + vocabulary.state_bins.start
    sample = SampleBuilder(prompts, 2, 5).build('action', 'pick', CODES, ACTIONS, 3, states)
    prompt = prompts.action('pick', list(CODES[2:4]), states[3])
    np.testing.assert_array_equal(sample.ids[~sample.labelled], prompt)
    assert prompt[-10:].tolist() == [vocabulary.state_begin, *states[3], vocabulary.state_end,
                                     vocabulary.separator]


@pytest.mark.parametrize('start', [0, 3])
def test_the_wrist_camera_follows_each_frame_of_the_action_branch_alone(start):
    wrist = CODES[::-1]
    one = builder()
    sample = one.build('action', 'pick', CODES, ACTIONS, start, wrist_codes=wrist)
    seen = range(max(0, start - 1), start + 1)
    images = [camera[step] for step in seen for camera in (CODES, wrist)]
    np.testing.assert_array_equal(sample.ids[~sample.labelled], PROMPTS.action('pick', images))
    world = one.build('world', 'pick', CODES, ACTIONS, start, wrist_codes=wrist)
    np.testing.assert_array_equal(world.ids, build(one, 'world', start).ids)


@pytest.mark.parametrize('horizon', [1, 5, 9])
def test_only_the_action_blocks_and_the_last_separator_are_learned(horizon):
    sample = build(builder(horizon=horizon), 'action', 0)
    assert len(learned(sample)) == ACTION_BLOCK_LENGTH * horizon + 1
    assert sample.ids[-1] == VOCABULARY.separator
    chunk = parse_action_chunk(learned(sample), VOCABULARY, horizon)
    np.testing.assert_array_equal(chunk, ACTIONS[:horizon])


def test_one_world_round_is_the_prompt_of_inference_and_the_next_image():
    sample = build(builder(), 'world', 3)
    prompt = PROMPTS.world(CODES[3], ACTIONS[3])
    np.testing.assert_array_equal(sample.ids[:len(prompt)], prompt)
    np.testing.assert_array_equal(parse_image_block(learned(sample)[:-1], VOCABULARY), CODES[4])
    assert learned(sample)[-1] == VOCABULARY.separator


@pytest.mark.parametrize('rounds', [2, 3])
def test_every_world_round_asks_with_its_action_and_learns_its_image(rounds):
    sample = build(builder(world_rounds=rounds), 'world', 2)
    targets = learned(sample).reshape(rounds, IMAGE_LENGTH + 1)
    for i, target in enumerate(targets):
        np.testing.assert_array_equal(parse_image_block(target[:-1], VOCABULARY), CODES[3 + i])
    begins = np.flatnonzero(sample.ids == VOCABULARY.boa)
    np.testing.assert_array_equal([sample.ids[b + 1:b + 8] for b in begins], ACTIONS[2:2 + rounds])
    assert not sample.labelled[begins].any()


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_a_world_round_shows_all_actions_up_to_its_image(stride):
    sample = build(builder(world_stride=3), 'world', 2, stride)
    np.testing.assert_array_equal(sample.ids[~sample.labelled],
                                  PROMPTS.world(CODES[2], ACTIONS[2:2 + stride]))
    np.testing.assert_array_equal(parse_image_block(learned(sample)[:-1], VOCABULARY),
                                  CODES[2 + stride])


def test_every_round_is_a_stride_ahead_of_the_one_before():
    one = builder(world_rounds=2, world_stride=3)
    sample = build(one, 'world', 1, 3)
    targets = learned(sample).reshape(2, IMAGE_LENGTH + 1)
    for target, step in zip(targets, (4, 7), strict=True):
        np.testing.assert_array_equal(parse_image_block(target[:-1], VOCABULARY), CODES[step])
    begins = np.flatnonzero(sample.ids == VOCABULARY.boa)
    np.testing.assert_array_equal([sample.ids[b + 1:b + 8] for b in begins], ACTIONS[1:7])
    np.testing.assert_array_equal(learned(build(one, 'video', 1, 3)), learned(sample))


def test_the_world_branch_has_every_stride_and_the_video_branch_the_longest():
    one = builder(world_stride=4)
    assert [list(one.strides(branch)) for branch in ('action', 'world', 'video')] == [
        [1], [1, 2, 3, 4], [4]]
    assert [len(one.starts('world', STEPS, stride)) for stride in (1, 4)] == [STEPS - 1, STEPS - 4]


def test_video_prediction_learns_the_same_images_without_any_action():
    video, world = (build(builder(world_rounds=2), branch, 1) for branch in ('video', 'world'))
    np.testing.assert_array_equal(learned(video), learned(world))
    assert not np.isin(video.ids, [VOCABULARY.boa, *VOCABULARY.bins]).any()


@pytest.mark.parametrize('branch, one, count', [
    ('action', builder(horizon=5), STEPS - 5 + 1), ('world', builder(), STEPS - 1),
    ('world', builder(world_rounds=3), STEPS - 3), ('action', builder(horizon=10), 0)])
def test_a_sample_starts_wherever_enough_steps_are_left(branch, one, count):
    starts = one.starts(branch, STEPS)
    assert len(starts) == count
    if count:
        assert build(one, branch, starts[-1]).labelled.any()


def action(motion=0.0, gripper=-1.0):
    return [motion, 0, 0, 0, 0, 0, gripper]


def test_no_ops_are_dropped_as_published():
    actions = np.array([action(), action(0.5), action(), action(gripper=1.0), action(gripper=1.0),
                        action(9e-5, 1.0), action(1e-3, 1.0)])
    assert moving_steps(actions).tolist() == [False, True, False, True, False, False, True]


def test_the_gripper_is_compared_with_the_last_step_that_was_kept():
    actions = np.array([action(gripper=1.0), action(0.5, -1.0), action(gripper=1.0),
                        action(gripper=1.0), action(gripper=-1.0)])
    assert moving_steps(actions).tolist() == [False, True, True, False, True]


def test_failed_episodes_are_left_out(tmp_path):
    episodes = [episode(0), episode(1, success=False), episode(2)]
    write_hdf5(tmp_path / 'pick_demo.hdf5', episodes)
    names = [one.name for one in filtered_episodes(tmp_path, drop_no_ops=False)]
    assert names == ['demo_0', 'demo_2']


def test_the_filter_keeps_a_still_label_whose_execution_moved(tmp_path):
    one = episode(0, steps=6)
    one.actions[2:4, :6] = 0
    one.executed[2, :6] = 0
    write_hdf5(tmp_path / 'pick_demo.hdf5', [one])
    kept, = filtered_episodes(tmp_path, drop_no_ops=True)
    np.testing.assert_array_equal(kept.frames, one.frames[[0, 1, 3, 4, 5]])


def held_labels(executed, **changes):
    """Return `labels_that_hold` of six steps with the label 0.5 on x and an open gripper."""
    labels = np.zeros((6, 7))
    labels[:, 0], labels[:, 6] = 0.5, -1.0
    both = labels.copy()
    both[:, 0] = executed
    for step, gripper in changes.items():
        both[int(step.removeprefix('gripper')), 6] = gripper
    return labels_that_hold(labels, both, 4, 0.25).tolist()


def test_where_the_label_was_executed_or_nearly_so_all_labels_hold():
    assert held_labels(0.5) == 6 * [4]
    assert held_labels([0.7, 0.3, 0.6, 0.5, 0.4, 0.5]) == 6 * [4]


def test_where_the_learner_did_something_else_its_next_labels_are_of_another_place():
    """Pins a bug: held still, a hand was told 0.5 four times, and a chunk went all of them."""
    assert held_labels(0.0) == 6 * [1]
    assert held_labels([0.5, 0.5, 0.5, -0.5, 0.5, 0.5]) == [4, 3, 2, 1, 4, 4]


def test_what_is_a_little_off_again_and_again_adds_up():
    assert held_labels([0.5, 0.8, 0.8, 0.5, 0.5, 0.5])[:3] == [4, 1, 1]
    assert held_labels([0.5, 0.74, 0.74, 0.5, 0.5, 0.5])[:3] == [4, 4, 4]


def test_a_gripper_that_was_told_otherwise_ends_the_chunk():
    assert held_labels(0.5, gripper2=1.0) == [3, 2, 1, 4, 4, 4]
    assert held_labels(0.5, gripper2=-0.2) == 6 * [4], 'it counts on which side of 0'


def test_short_chunks_begin_up_to_the_last_step_and_no_separator_ends_them():
    one = builder(horizon=5, short_chunks=True)
    assert list(one.starts('action', STEPS)) == list(range(STEPS))
    assert list(one.starts('action', 1)) == [0] and list(one.starts('world', 1)) == []
    whole, short = build(one, 'action', STEPS - 5), build(one, 'action', STEPS - 2)
    assert (whole.num_actions, short.num_actions) == (5, 2)
    assert learned(whole)[-1] == VOCABULARY.separator
    ids = learned(short)
    assert len(ids) == 2 * 9 and ids[-1] == VOCABULARY.eoa and short.ids[-1] == VOCABULARY.eoa


def test_an_aim_is_the_token_of_the_newest_frame_and_a_way_from_the_hand():
    one = builder(history_length=2)
    aim = np.array([0.6, 0.1, 0.02, -0.03, 0.04])
    sample = one.action('pick', CODES, ACTIONS, 3, aim=aim)
    rows, columns = CODES.shape[1:]
    newest = np.flatnonzero(sample.ids == VOCABULARY.boi)[-1]
    assert sample.aim == newest + 3 + int(0.1 * rows) * (columns + 1) + int(0.6 * columns)
    assert sample.ids[sample.aim] == VOCABULARY.code_start + CODES[
        3, int(0.1 * rows), int(0.6 * columns)]
    np.testing.assert_array_equal(sample.away, aim[2:])
    outside = one.action('pick', CODES, ACTIONS, 3, aim=np.array([1.2, 0.1, 0.0, 0.0, 0.0]))
    assert outside.aim is None and outside.away is not None
    assert one.action('pick', CODES, ACTIONS, 3).away is None

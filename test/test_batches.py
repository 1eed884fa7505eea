# SPDX-License-Identifier: Apache-2.0
"""Samples and batches: each once, the same order every time, nothing learned that is not asked."""

import numpy as np
import pytest
import torch
from training_data import (
    IMAGE_SIZE,
    INSTRUCTIONS,
    episode,
    small_store,
    tiny_tokenizer,
    with_chunks,
)

from worldvla_ros.model.attention_mask import action_chunk_mask
from worldvla_ros.tokens.action_tokenizer import ActionTokenizer
from worldvla_ros.tokens.sequence import PromptBuilder, parse_action_chunk
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.tokens.vocab import Vocabulary
from worldvla_ros.training.aims import UNKNOWN
from worldvla_ros.training.batches import (
    SampleTable,
    batch_indices,
    batch_mask,
    collate,
    collate_by_branch,
    fitting_batch,
    with_noise,
)
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.losses import IGNORED
from worldvla_ros.training.samples import BRANCHES, SampleBuilder
from worldvla_ros.training.store import TokenStore
from worldvla_ros.training.store_writing import write_store

TEXT = TextTokenizer.train(INSTRUCTIONS, max_tokens=300)
VOCABULARY = Vocabulary.compact(TEXT.num_tokens, num_codes=64)
ACTION_TOKENIZER = ActionTokenizer([-1.0] * 7, [1.0] * 7, VOCABULARY)


@pytest.fixture
def store(tmp_path):
    return TokenStore.open(small_store(tmp_path)[0])


def table(store, branches=BRANCHES, horizon=5, world_rounds=2, world_stride=1):
    builder = SampleBuilder(PromptBuilder(TEXT, VOCABULARY), 2, horizon, world_rounds,
                            world_stride)
    return SampleTable(store, store.episodes, branches, builder, ACTION_TOKENIZER)


@pytest.mark.parametrize('stride, world, video', [
    (1, 12 - 2, 12 - 2), (3, (12 - 2) + (12 - 4) + (12 - 6), 12 - 6)])
def test_every_sample_is_in_the_table_once(store, stride, world, video):
    samples = table(store, world_stride=stride)
    per_episode = (12 - 5 + 1) + world + video
    assert len(samples) == 4 * per_episode
    sequences = {tuple(samples[i].ids) for i in range(len(samples))}
    assert len(sequences) == len(samples)


def test_the_world_branch_is_asked_with_what_was_executed(tmp_path):
    one = episode()
    one.executed[:] = one.executed[::-1]
    store = write_store(tmp_path / 'a', [one], tiny_tokenizer(), IMAGE_SIZE)
    for branch, actions in (('action', one.actions), ('world', one.executed)):
        sample = table(store, (branch,), horizon=1, world_rounds=1)[2]
        begin = int(np.flatnonzero(sample.ids == VOCABULARY.boa)[0])
        np.testing.assert_array_equal(sample.ids[begin + 1:begin + 8],
                                      ACTION_TOKENIZER.encode(actions[2]))


def test_labels_of_a_learners_turn_are_learned_as_far_as_they_hold(tmp_path):
    one = episode()
    one.executed[4:, :6] = -one.actions[4:, :6]
    store = write_store(tmp_path / 'a', [one], tiny_tokenizer(), IMAGE_SIZE)
    everything = table(store, ('action',), horizon=3)
    samples = SampleTable(store, store.episodes, ('action',), everything._builder,
                          ACTION_TOKENIZER, label_tolerance=0.25)
    learned = [len(samples[i].ids[samples[i].labelled]) // 9 for i in range(len(samples))]
    assert learned == [3, 3, 3, 2, *6 * [1]]
    assert samples.learned_share == pytest.approx(sum(learned) / (3 * len(learned)))
    assert everything.learned_share == 1.0


def test_whole_chunks_leave_out_what_does_not_hold_to_its_end_and_no_frame_of_the_world(tmp_path):
    one = episode()
    one.executed[4:, :6] = -one.actions[4:, :6]
    store = write_store(tmp_path / 'a', [one], tiny_tokenizer(), IMAGE_SIZE)
    everything = table(store, ('world', 'action'), horizon=3)
    whole = SampleTable(store, store.episodes, ('world', 'action'), everything._builder,
                        ACTION_TOKENIZER, label_tolerance=0.25, whole_chunks=True)
    kept = [row[2] for row in whole._rows if row[0] == 1]
    assert kept == [0, 1, 2]
    assert len(whole) - len(kept) == sum(row[0] == 0 for row in everything._rows)
    assert whole.learned_share == 1.0
    one.executed[:, :6] = -one.actions[:, :6]
    store = write_store(tmp_path / 'b', [one], tiny_tokenizer(), IMAGE_SIZE)
    with pytest.raises(DatasetError, match='in 1 episodes: no chunk holds to its end'):
        SampleTable(store, store.episodes, ('action',), everything._builder, ACTION_TOKENIZER,
                    label_tolerance=0.25, whole_chunks=True)


def test_a_chunk_that_the_expert_was_asked_for_is_learned_whole_where_labels_do_not_hold(tmp_path):
    one = with_chunks(episode(), steps=(3, 7))
    write_store(tmp_path / 'store', [one], tiny_tokenizer(), IMAGE_SIZE)
    store = TokenStore.open(tmp_path / 'store')
    builder = SampleBuilder(PromptBuilder(TEXT, VOCABULARY), 1, 4, 1)
    samples = SampleTable(store, store.episodes, ('action',), builder, ACTION_TOKENIZER,
                          label_tolerance=0.4, whole_chunks=True, asked_repeats=2)
    assert len(samples) == 4
    for index, step in enumerate((3, 3, 7, 7)):
        told = parse_action_chunk(samples[index].ids[np.argmax(samples[index].labelled):],
                                  VOCABULARY)
        np.testing.assert_array_equal(told, ACTION_TOKENIZER.encode(one.chunks[step, :4]))
    world = SampleTable(store, store.episodes, ('world',), builder, ACTION_TOKENIZER,
                        asked_repeats=2)
    assert len(world) == 12 - 1
    executed = ACTION_TOKENIZER.encode(one.executed)
    for index in range(len(world)):
        assert set(executed[index]) <= set(world[index].ids.tolist())


def test_short_chunks_end_with_the_episode_unless_the_expert_was_asked_for_more(tmp_path):
    one = with_chunks(episode(), steps=(3, 10))
    one.executed[:] = one.actions
    write_store(tmp_path / 'store', [one, episode(1, steps=1)], tiny_tokenizer(), IMAGE_SIZE)
    store = TokenStore.open(tmp_path / 'store')
    builder = SampleBuilder(PromptBuilder(TEXT, VOCABULARY), 1, 4, short_chunks=True)
    samples = SampleTable(store, store.episodes, ('action', 'world'), builder, ACTION_TOKENIZER,
                          label_tolerance=0.4, whole_chunks=True)
    counts = [samples[index].num_actions for index in range(13)]
    assert counts == [4] * 9 + [3, 4, 1, 1], 'the last is a glance: an episode of one step'
    assert samples.learned_share == 1.0 and len(samples) == 13 + 11
    asked = parse_action_chunk(samples[10].ids[np.argmax(samples[10].labelled):], VOCABULARY)
    np.testing.assert_array_equal(asked, ACTION_TOKENIZER.encode(one.chunks[10, :4]))
    batch = collate([samples[index] for index in (0, 12, 20)])
    assert batch.num_actions.tolist() == [4, 1, 0] and batch.aims.tolist() == [UNKNOWN] * 3


def test_a_horizon_beyond_the_recorded_chunks_is_refused(tmp_path):
    write_store(tmp_path / 'store', [with_chunks(episode())], tiny_tokenizer(), IMAGE_SIZE)
    with pytest.raises(DatasetError, match=r'chunks of 5 actions, and data\.horizon is 6'):
        table(TokenStore.open(tmp_path / 'store'), horizon=6)


def test_episodes_shorter_than_the_horizon_are_no_data(store):
    with pytest.raises(DatasetError, match=r'in 4 episodes: each is shorter than data\.horizon'):
        table(store, ('action',), horizon=13)
    with pytest.raises(DatasetError, match=r'data\.world_rounds \(3 of 4 steps or more\)'):
        table(store, ('video',), world_rounds=3, world_stride=4)


def test_an_epoch_visits_each_sample_once_and_epochs_differ():
    epochs = [np.concatenate([batch_indices(103, 10, 7, step) for step in steps])
              for steps in (range(10), range(10, 20))]
    for visited in epochs:
        assert len(set(visited)) == 100
    assert not np.array_equal(*epochs)
    np.testing.assert_array_equal(batch_indices(103, 10, 7, 13), epochs[1][30:40])
    assert not np.array_equal(batch_indices(103, 10, 8, 13), epochs[1][30:40])


def test_fewer_samples_than_a_batch_are_refused():
    with pytest.raises(DatasetError, match='lower the batch size'):
        batch_indices(5, 6, 0, 0)


def test_padding_is_never_learned_and_never_seen(store):
    samples = table(store)
    chosen = [samples[0], samples[5], samples[len(samples) - 1]]
    batch = collate(chosen, length=200)
    for row, sample in enumerate(chosen):
        length = len(sample.ids)
        assert (batch.labels[row, length:] == IGNORED).all()
        assert not batch_mask(batch.input_ids, VOCABULARY)[row, :length, length:].any()
        learned = batch.labels[row, :length] != IGNORED
        np.testing.assert_array_equal(learned, sample.labelled)
        np.testing.assert_array_equal(batch.input_ids[row, :length], sample.ids)
    learned = batch.labels[:, 1:] != IGNORED
    assert torch.equal(batch.targets.ids, batch.labels[:, 1:][learned])
    of_world = torch.tensor([False, False, True])[:, None].expand_as(learned)[learned]
    assert torch.equal(batch.target_is_world, of_world) and of_world.any()


def test_a_sample_is_refused_rather_than_cut(store):
    with pytest.raises(DatasetError, match='fixed length'):
        collate([table(store)[0]], length=20)


@pytest.mark.parametrize('branch', BRANCHES)
def test_the_mask_of_a_batch_equals_the_published_mask_of_each_sequence(store, branch):
    """It hides none of the actions of the world branch: an image stands behind them."""
    samples = table(store, (branch,), world_stride=4)
    batch = collate([samples[0], samples[3]])
    mask = batch_mask(batch.input_ids, VOCABULARY)
    for row, sample in enumerate((samples[0], samples[3])):
        ids = torch.from_numpy(sample.ids)
        expected = action_chunk_mask(ids, VOCABULARY)
        assert torch.equal(mask[row, :len(ids), :len(ids)], expected)
    hides = not torch.equal(mask, batch_mask(batch.input_ids, VOCABULARY, chunk_mask=False))
    assert hides == (branch == 'action')


def test_an_action_after_the_last_image_sees_none_before_it():
    """A history of actions between the images, which no sample has yet, is masked as published."""
    v = VOCABULARY
    block, image = [v.boa, *[v.bin_start] * 7, v.eoa], [v.boi, v.code_start, v.eoi]
    ids = torch.tensor([v.bos, *image, *block, *block, *image, *block, *block, v.separator])
    assert torch.equal(batch_mask(ids[None], v)[0], action_chunk_mask(ids, v))


def test_a_share_of_the_batch_is_taken_from_the_other_branches(store):
    samples = table(store, ('action', 'world'))
    chosen = [samples.batch(8, 0.25, 0, step) for step in range(4)]
    branches = [[samples[i].branch for i in indices] for indices in chosen]
    assert branches == [['action'] * 6 + ['world'] * 2] * 4
    assert len({tuple(sorted(indices)) for indices in chosen}) == 4
    np.testing.assert_array_equal(samples.batch(8, 0.25, 0, 3), chosen[3])
    np.testing.assert_array_equal(samples.batch(8, None, 5, 1),
                                  batch_indices(len(samples), 8, 5, 1))
    assert {samples[i].branch for i in samples.batch(8, 0.0, 0, 0)} == {'action'}


@pytest.mark.parametrize('world_share', [0.0625, 1 - 0.0625])
def test_a_share_of_less_than_a_sample_is_spread_over_the_steps(store, world_share):
    """Pins a bug: it was rounded to none, so that the world was never learned, or no action."""
    samples = table(store, ('action', 'world'))
    chosen = [samples.batch(8, world_share, 0, step) for step in range(20)]
    assert all(len(set(indices)) == 8 for indices in chosen)
    rare = 'world' if world_share < 0.5 else 'action'
    taken = [[i for i in indices if samples[i].branch == rare] for indices in chosen]
    assert [len(indices) for indices in taken] == [1, 0] * 10
    assert len(set().union(*taken)) == 10, 'of an epoch each is another'
    np.testing.assert_array_equal(samples.batch(8, world_share, 0, 4), chosen[4])
    assert fitting_batch(samples, world_share, 8) == 8


def test_a_batch_that_few_episodes_make_smaller_still_has_a_sample_of_each_branch(store):
    samples = table(store, ('action', 'world'))  # 32 of actions, 40 of the world
    size = fitting_batch(samples, 0.01, 100)
    assert size == 32 and {samples[i].branch for i in samples.batch(size, 0.01, 0, 0)} == {
        'action', 'world'}


def test_branches_are_padded_apart(store):
    samples = table(store, ('action', 'world'))
    chosen = [samples[i] for i in samples.batch(8, 0.25, 0, 0)]
    action, world = collate_by_branch(chosen)
    assert (len(action.input_ids), len(world.input_ids)) == (6, 2)
    assert action.input_ids.shape[1] == max(len(sample.ids) for sample in chosen[:6])
    assert world.target_is_world.all() and not action.target_is_world.any()


def test_noise_replaces_what_is_shown_and_leaves_what_is_learned(store):
    """Shown are the images of a prompt and, to the values after them, the values of an action."""
    samples = table(store, ('action', 'world'))
    for batch in collate_by_branch([samples[0], samples[1], samples[len(samples) - 1]]):
        learned = batch.labels != IGNORED
        is_code, is_bin = (torch.isin(batch.input_ids, torch.tensor(kind))
                           for kind in (VOCABULARY.codes, VOCABULARY.bins))
        for codes, actions, may_change in ((0.5, 0.0, is_code & ~learned),
                                           (0.0, 0.5, is_bin & learned),
                                           (0.5, 0.5, (is_code & ~learned) | (is_bin & learned))):
            noisy = with_noise(batch, VOCABULARY, codes, actions, np.random.default_rng(0))
            changed = noisy.input_ids != batch.input_ids
            assert not (changed & ~may_change).any()
            assert not may_change.any() or 0.35 < changed[may_change].float().mean() < 0.65
            for kind, of_kind in ((VOCABULARY.codes, is_code), (VOCABULARY.bins, is_bin)):
                assert torch.isin(noisy.input_ids[of_kind], torch.tensor(kind)).all()
            assert torch.equal(noisy.labels, batch.labels)
        same = with_noise(batch, VOCABULARY, 0.0, 0.0, np.random.default_rng(0))
        assert torch.equal(same.input_ids, batch.input_ids)

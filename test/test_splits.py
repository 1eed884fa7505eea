# SPDX-License-Identifier: Apache-2.0
"""Which demonstrations are held out: the same ones everywhere, and nobody is left to guess."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from training_data import IMAGE_SIZE, episode, tiny_tokenizer, write_hdf5

from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.frames import load_frames
from worldvla_ros.training.held_out_clips import held_out_lengths
from worldvla_ros.training.libero_hdf5 import episode_actions
from worldvla_ros.training.replay_list import kept_steps
from worldvla_ros.training.splits import SPLITS, SplitCounts, draw, split, split_names
from worldvla_ros.training.store_writing import write_store


def draw_of(one):
    return draw(one.name, one.actions, one.executed)


def test_the_published_split_of_fifty_holds_out_five_to_nine():
    names = [f'demo_{i}' for i in range(50)]
    train, held_out = split_names(names, 'published')
    assert sorted(held_out) == [f'demo_{i}' for i in range(5, 10)] and len(train) == 45
    assert split_names(names, 'numeric')[1] == [f'demo_{i}' for i in range(45, 50)]


@pytest.mark.parametrize('count, expected', [(1, 1), (2, 2), (10, 9), (11, 10), (20, 18)])
def test_nine_tenths_are_for_training_rounded_up(count, expected):
    train, held_out = split_names([f'demo_{i}' for i in range(count)], 'numeric')
    assert len(train) == expected and len(train) + len(held_out) == count


def test_a_hash_holds_out_about_a_tenth():
    rng = np.random.default_rng(0)
    recorded = {('task', f'demo_{number}'): tuple(rng.normal(size=(2, 5, 7)))
                for number in range(1000)}
    train, held_out = split(recorded, 'hashed')
    assert 70 <= len(held_out) <= 130 and len(train) + len(held_out) == 1000


def test_a_demonstration_stays_on_its_side_whatever_is_beside_it_and_whatever_it_is_called(
        tmp_path):
    """Rounds of eight hold out nothing by number, and by a hash the same as all together."""
    episodes = [replace(episode(number), name=f'demo_{number % 8}') for number in range(40)]
    expected = {draw_of(one) for one in episodes if draw_of(one) >= 0.9}
    for number in range(5):
        some = episodes[8 * number:8 * number + 8]
        write_hdf5(tmp_path / f'round{number}' / 'pick_demo.hdf5', some)
        read = episode_actions(tmp_path / f'round{number}' / 'pick_demo.hdf5')
        assert [draw(name, *read[name]) for name in read] == [draw_of(one) for one in some]
        held_out = held_out_lengths(some, 'hashed')
        assert {draw_of(one) for one in some if (one.task, one.name) in held_out} == expected & {
            draw_of(one) for one in some}
        assert not held_out_lengths(some, 'numeric')
    renamed = [replace(one, task=f'round/pick{i}', name=f'demo_{i}')
               for i, one in enumerate(episodes)]
    held_out = held_out_lengths(renamed, 'hashed')
    assert {draw_of(one) for one in renamed if (one.task, one.name) in held_out} == expected
    store = write_store(tmp_path / 'store', renamed, tiny_tokenizer(), IMAGE_SIZE)
    names = {one.name for one in renamed if draw_of(one) in expected}
    assert {one.name for one in store.split('hashed')[1]} == names and names
    loaded = load_frames(tmp_path, IMAGE_SIZE, 1000, 'hashed')
    assert len(loaded.held_out) == sum(len(one.frames) for one in renamed if one.name in names)


def test_the_no_op_filter_leaves_a_demonstration_on_its_side():
    one = episode(0)
    one.actions[3:6, :6] = one.executed[3:5, :6] = 0
    filtered = one.kept(kept_steps(one.actions, one.executed))
    assert len(filtered.actions) < len(one.actions)
    assert draw_of(filtered) == draw_of(one) != draw_of(episode(1))


def test_a_demonstration_of_libero_and_its_copy_that_was_rendered_again_are_on_one_side(tmp_path):
    """Pins a bug: LIBERO's own files are read without their first action, the copies with it."""
    originals = [episode(number, steps=60) for number in range(10)]
    write_hdf5(tmp_path / 'original' / 'pick_demo.hdf5', originals, layout='converter')
    read = episode_actions(tmp_path / 'original' / 'pick_demo.hdf5')
    with h5py.File(tmp_path / 'original' / 'pick_demo.hdf5') as file:
        stored = {name: file[f'data/{name}/actions'][:] for name in file['data']}
    draws = {name: draw(name, *actions) for name, actions in read.items()}
    for name, actions in stored.items():
        assert len(actions) == len(read[name][0]) + 1
        assert draw(name, actions, actions) == draws[name]
    assert len(set(draws.values())) == 10


@pytest.mark.parametrize('order', SPLITS)
def test_pieces_of_a_demonstration_are_on_the_side_of_the_whole(order):
    """Pins a bug: 'hashed' drew by the last piece, which may have fewer steps than are hashed."""
    whole = {('pick', f'demo_{number}'): (one.actions, one.executed)
             for number in range(40) for one in [episode(number, steps=60)]}
    pieces = {('pick', f'{name}.{i}'): tuple(array[5 * i:5 * i + 5] for array in arrays)
              for (_, name), arrays in whole.items() for i in range(12)}
    for side, cut in zip(split(whole, order), split(pieces, order), strict=True):
        assert len(side) > 0 and len(cut) == 12 * len(side)
        assert {name.partition('.')[0] for _, name in cut} == {name for _, name in side}


def test_what_has_no_actions_goes_by_its_name():
    assert draw('demo_1', np.zeros((4, 7)), np.zeros((4, 7))) == draw(
        'demo_1', np.zeros((9, 7)), np.zeros((9, 7))) != draw(
        'demo_2', np.zeros((4, 7)), np.zeros((4, 7)))


def test_a_split_that_leaves_nothing_to_learn_from_is_refused(tmp_path):
    one = next(episode(number) for number in range(100) if draw_of(episode(number)) >= 0.9)
    store = write_store(tmp_path / 'store', [one], tiny_tokenizer(), IMAGE_SIZE)
    with pytest.raises(DatasetError, match=r'hashed holds out all 1 episodes.*split numeric'):
        store.split('hashed')
    write_hdf5(tmp_path / 'demos' / 'pick_demo.hdf5', [one])
    with pytest.raises(DatasetError, match='leaves 0 episodes to learn from and 1 held out'):
        load_frames(tmp_path / 'demos', IMAGE_SIZE, 10, 'hashed')


def test_the_counts_are_told_and_tasks_without_any_are_named():
    said = SplitCounts.of('hashed', ['open'] * 9 + ['push'] * 9 + ['stack'] * 4,
                          ['open', 'push']).in_words()
    assert said.splitlines() == [
        'split hashed: 22 episodes for training + 2 held out (9+1 of 2 tasks, 4+0 of 1 task)',
        'warning: nothing is held out of 1 of 3 tasks: stack']
    assert 'warning' not in SplitCounts.of('hashed', ['open'], ['open']).in_words()

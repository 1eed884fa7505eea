# SPDX-License-Identifier: Apache-2.0
"""Frames of demonstrations in memory: in order, evenly chosen, and which of their pixels move."""

from dataclasses import replace

import numpy as np
import pytest
from training_data import IMAGE_SIZE, tiny_tokenizer, write_hdf5
from vqgan_runs import config, frame_set, loaded, moving_square, write_moving_squares

from worldvla_ros.training import frames as frames_module
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.frames import choose_spans, load_frames
from worldvla_ros.training.replay_list import Replay, ReplayList, actions_digest
from worldvla_ros.training.store_writing import write_store
from worldvla_ros.training.tokenise import filtered_episodes
from worldvla_ros.training.vqgan import train_vqgan


@pytest.fixture
def demos(tmp_path):
    return write_moving_squares(tmp_path)


def test_frames_of_two_episodes_are_not_compared():
    frames = frame_set([np.full((2, 64, 64, 3), value, np.uint8) for value in (0, 255)])
    assert not frames.moving(np.arange(4)).any()


def test_frames_are_loaded_in_the_order_of_the_split(demos):
    train, held_out = loaded(demos, 40).train, loaded(demos, 40).held_out
    expected = frame_set([moving_square(number).frames for number in range(9)])
    np.testing.assert_array_equal(train.frames, expected.frames)
    np.testing.assert_array_equal(train.neighbours, expected.neighbours)
    np.testing.assert_array_equal(held_out.frames, moving_square(9).frames)


@pytest.mark.parametrize('split', ['numeric', 'published', 'hashed'])
@pytest.mark.parametrize('listed', [None, 'whole', 'without no-ops'])
def test_an_image_tokenizer_holds_out_the_episodes_of_the_store(tmp_path, split, listed):
    """Pins a bug: failed episodes and those that do not replay moved the split by number."""
    episodes = [replace(moving_square(number, 3 + number % 4), success=number % 5 != 4)
                for number in range(40)]
    still = replace(episodes[12], actions=np.zeros((3, 7)), executed=np.zeros((3, 7)))
    episodes[12] = still
    write_hdf5(tmp_path / 'demos' / 'push_demo.hdf5', episodes)
    only, drop_no_ops = None, listed == 'without no-ops'
    if listed is not None:
        only = tmp_path / 'replays.json'
        ReplayList(drop_no_ops, [
            Replay('push', one.name, actions_digest(one.actions, one.executed), '',
                   number not in (3, 7, 37), 3, 3) for number, one in enumerate(episodes)
            if one.success]).save(only)
    store = write_store(tmp_path / 'store', filtered_episodes(
        tmp_path / 'demos', drop_no_ops, None if only is None else ReplayList.load(only)),
        tiny_tokenizer(), IMAGE_SIZE)
    found = load_frames(tmp_path / 'demos', IMAGE_SIZE, 1000, split, only=only)
    by_name = {one.name: one.frames for one in episodes}
    for frames, side in zip((found.train, found.held_out), store.split(split), strict=True):
        expected = np.concatenate([by_name[one.name] for one in side])
        np.testing.assert_array_equal(frames.frames, expected)


def test_of_too_many_frames_pairs_are_kept_in_which_pixels_still_move(demos):
    train, held_out = loaded(demos, 20).train, loaded(demos, 20).held_out
    assert (len(train), len(held_out)) == (18, 2)
    moving = train.moving(np.arange(18)).sum((1, 2))
    np.testing.assert_array_equal(moving, 16 * 16)  # the square moves by half its width
    np.testing.assert_array_equal(train.neighbours.reshape(-1, 2), [
        (second, first) for first, second in np.arange(18).reshape(-1, 2)])


@pytest.mark.parametrize('lengths, share, expected', [
    ([3, 4], 1.0, [[(0, 3)], [(0, 4)]]),
    ([9, 4], 0.5, [[(0, 2), (4, 6)], [(0, 2)]]),
    ([1, 1, 4], 0.7, [[(0, 1)], [], [(0, 2)]]),
    ([100], 0.001, [[(0, 2)]])])
def test_kept_frames_are_spread_evenly(lengths, share, expected):
    assert choose_spans(lengths, share) == expected


def test_frames_that_do_not_fit_into_memory_are_refused_before_they_are_read(demos, monkeypatch):
    monkeypatch.setattr(frames_module, 'available_memory', lambda: 30 * IMAGE_SIZE ** 2 * 3)
    with pytest.raises(DatasetError, match=r'40 frames of 64 px .*lower most_frames to 24'):
        loaded(demos)
    loaded(demos, 24)
    monkeypatch.undo()
    assert frames_module.available_memory() > 1e6


def test_too_few_demonstrations_are_refused(tmp_path):
    write_hdf5(tmp_path / 'demos' / 'push_demo.hdf5', [moving_square(0)])
    with pytest.raises(DatasetError, match=r'1 episodes to learn from and 0 held out; .*ten'):
        train_vqgan(config(tmp_path))

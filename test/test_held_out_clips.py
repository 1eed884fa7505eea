# SPDX-License-Identifier: Apache-2.0
"""Clips come from the held-out episodes alone, spread over tasks, and fit together."""

from dataclasses import replace

import numpy as np
import pytest
from training_data import episode, write_hdf5

from worldvla_ros.errors import FrameError
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.held_out_clips import choose_places, held_out_lengths, load_clips
from worldvla_ros.training.replay_list import Replay, ReplayList, actions_digest
from worldvla_ros.training.splits import split_names


def recorded(folder, tasks=2, per_task=20, **options):
    for task in range(tasks):
        write_hdf5(folder / f'task{task}_demo.hdf5',
                   [episode(number, **options) for number in range(per_task)])
    return folder


@pytest.mark.parametrize('order', ['numeric', 'published'])
@pytest.mark.parametrize('count', [1, 9, 10, 11, 25])
def test_a_stream_is_split_like_the_names_of_it(order, count):
    episodes = [episode(number, steps=2, task=task) for task in ('a', 'b')
                for number in range(count)]
    _, expected = split_names([f'demo_{number}' for number in range(count)], order)
    assert held_out_lengths(iter(episodes), order) == {
        (task, name): 2 for task in ('a', 'b') for name in expected}


def test_a_clip_joins_executed_actions_and_the_frames_they_lead_to(tmp_path):
    source = [replace(one, executed=one.actions * 0.5)
              for one in (episode(number) for number in range(10))]
    write_hdf5(tmp_path / 'pick_demo.hdf5', source)
    found = load_clips(tmp_path, image_size=64, steps=4, most=1, order='numeric')
    clip, = found.clips
    assert (clip.task, clip.episode) == ('pick', 'demo_9')
    assert 0 < clip.start <= 8
    np.testing.assert_array_equal(clip.frames, source[9].frames[clip.start:clip.start + 5])
    np.testing.assert_allclose(clip.actions, source[9].executed[clip.start:clip.start + 4])


def test_frames_of_another_size_are_resized(tmp_path):
    found = load_clips(recorded(tmp_path), image_size=32, steps=4, most=1, order='numeric')
    assert found.clips[0].frames.shape == (5, 32, 32, 3)


def test_failed_episodes_count_neither_for_the_split_nor_as_clips(tmp_path):
    write_hdf5(tmp_path / 'pick_demo.hdf5',
               [episode(number, success=number < 10) for number in range(20)])
    found = load_clips(tmp_path, image_size=64, steps=4, most=5, order='numeric')
    assert {clip.episode for clip in found.clips} == {'demo_9'}


def test_episodes_that_tokenise_leaves_out_do_not_count_for_the_split_either(tmp_path):
    episodes = [episode(number) for number in range(20)]
    write_hdf5(tmp_path / 'pick_demo.hdf5', episodes)
    ReplayList(False, [
        Replay('pick', one.name, actions_digest(one.actions, one.executed), '', number < 10,
               12, 12)
        for number, one in enumerate(episodes)]).save(tmp_path / 'replays.json')
    found = load_clips(tmp_path, image_size=64, steps=4, most=5, order='numeric',
                       only=tmp_path / 'replays.json')
    assert {clip.episode for clip in found.clips} == {'demo_9'}
    with pytest.raises(DatasetError, match='give --only'):
        load_clips(tmp_path, image_size=64, steps=4, most=5, order='numeric', drop_no_ops=True)


def test_all_tasks_come_before_a_second_clip_of_one():
    lengths = {(task, f'demo_{number}'): 12 for task in 'ab' for number in range(2)}
    places = choose_places(lengths, steps=4, most=6)
    assert [task for (task, _), _ in places] == ['a', 'b', 'a', 'b', 'a', 'b']
    assert [name for (_, name), _ in places[:4]] == ['demo_0', 'demo_0', 'demo_1', 'demo_1']
    assert len(set(places)) == 6


def test_no_place_is_taken_twice():
    places = choose_places({('pick', 'demo_0'): 6}, steps=4, most=50)
    assert sorted(start for _, start in places) == [0, 1]


def test_short_episodes_are_left_out_and_counted(tmp_path):
    write_hdf5(tmp_path / 'pick_demo.hdf5',
               [episode(number, steps=5 if number == 19 else 12) for number in range(20)])
    found = load_clips(tmp_path, image_size=64, steps=5, most=9, order='numeric')
    assert (found.held_out_episodes, found.too_short) == (2, 1)
    assert {clip.episode for clip in found.clips} == {'demo_18'}


def test_what_leaves_no_clip_is_told(tmp_path):
    few = recorded(tmp_path / 'few', per_task=9)
    with pytest.raises(DatasetError, match=r'no episode is held out.*ten'):
        load_clips(few, image_size=64, steps=4, most=1, order='numeric')
    with pytest.raises(DatasetError, match=r'none of 4 held-out episodes has 51 frames, the '
                       r'longest has 12.*at most 11'):
        load_clips(recorded(tmp_path / 'short'), image_size=64, steps=50, most=1, order='numeric')
    with pytest.raises(DatasetError, match='no demonstrations'):
        load_clips(tmp_path / 'empty', image_size=64, steps=4, most=1, order='numeric')


def test_pictures_that_are_not_square_are_refused(tmp_path):
    wide = [replace(one, frames=one.frames[:, :32]) for one in map(episode, range(10))]
    write_hdf5(tmp_path / 'pick_demo.hdf5', wide)
    with pytest.raises(FrameError, match='square'):
        load_clips(tmp_path, image_size=64, steps=4, most=1, order='numeric')

# SPDX-License-Identifier: Apache-2.0
"""The token store: nothing lost, nothing mixed up, nothing encoded twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_data import (
    IMAGE_SIZE,
    INSTRUCTIONS,
    episode,
    small_store,
    tiny_tokenizer,
    with_chunks,
    with_wrist,
    write_hdf5,
)

from worldvla_ros.errors import ConfigError
from worldvla_ros.model.image_tokenizer import save_image_tokenizer, tokenizer_fingerprint
from worldvla_ros.training import store_writing, tokenise
from worldvla_ros.training.failures import DatasetError, TrainingError
from worldvla_ros.training.store import TokenStore
from worldvla_ros.training.store_writing import write_store
from worldvla_ros.training.tokenise import main


@pytest.fixture
def store(tmp_path):
    return TokenStore.open(small_store(tmp_path)[0])


def test_a_store_gives_back_the_codes_and_actions_of_every_frame(store):
    tokenizer = tiny_tokenizer()
    for number, stored in enumerate(store.episodes):
        one = episode(number)
        np.testing.assert_array_equal(store.codes[stored.steps], tokenizer.encode(one.frames))
        np.testing.assert_array_equal(store.actions[stored.steps], one.actions.astype(np.float32))
        assert stored.instruction == INSTRUCTIONS[number % 2]
    assert store.codes.dtype == np.uint16
    assert len(np.unique(store.codes)) > 3  # the pictures differ, so this is no test of zeros


def test_a_store_gives_back_the_states_and_their_range(store):
    states = np.concatenate([episode(number).states for number in range(4)])
    np.testing.assert_allclose(store.states, states, atol=1e-6)
    low, high = store.state_range(store.episodes)
    np.testing.assert_allclose(low, states.min(0), atol=1e-6)
    assert (high > low).all()


def test_demonstrations_without_states_give_no_range_of_them(tmp_path):
    episodes = [episode(0), replace(episode(1), states=None)]
    store = write_store(tmp_path / 'store', episodes, tiny_tokenizer(), IMAGE_SIZE)
    with pytest.raises(DatasetError, match='12 of 24 frames have no state'):
        store.state_range(store.episodes)


def test_a_store_keeps_the_wrist_camera_apart(tmp_path):
    episodes = [with_wrist(episode(number)) for number in range(2)]
    store = write_store(tmp_path / 'store', episodes, tiny_tokenizer(), IMAGE_SIZE)
    plain = write_store(tmp_path / 'plain', [episode(0), episode(1)], tiny_tokenizer(), IMAGE_SIZE)
    pictures = np.concatenate([one.wrist for one in episodes])
    np.testing.assert_array_equal(store.wrist_codes, tiny_tokenizer().encode(pictures))
    np.testing.assert_array_equal(store.codes, plain.codes)
    assert plain.wrist_codes is None and plain.header.data != store.header.data
    (tmp_path / 'store' / 'wrist_codes.npy').unlink()
    with pytest.raises(DatasetError, match=r'wrist_codes\.npy is missing'):
        TokenStore.open(tmp_path / 'store')


def test_a_wrist_camera_that_some_demonstrations_lack_is_refused(tmp_path):
    with pytest.raises(DatasetError, match='1 of 2 demonstrations lack the wrist camera'):
        write_store(tmp_path / 'store', [with_wrist(episode(0)), episode(1)], tiny_tokenizer(),
                    IMAGE_SIZE)


def test_a_store_keeps_the_chunks_that_the_expert_was_asked_for(tmp_path):
    demos = [episode(), with_chunks(episode(1))]
    write_hdf5(tmp_path / 'data/pick_demo.hdf5', demos)
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    assert main([str(tmp_path / 'data'), '--tokenizer', str(tmp_path / 'tokenizer'),
                 '--image-size', str(IMAGE_SIZE), '--out', str(tmp_path / 'store')]) == 0
    store = TokenStore.open(tmp_path / 'store')
    without, asked = (store.chunks[one.steps] for one in store.episodes)
    assert np.isnan(without).all() and without.shape == (12, 5, 7)
    np.testing.assert_array_equal(asked, demos[1].chunks.astype(np.float32))
    assert TokenStore.open(small_store(tmp_path / 'plain')[0]).chunks is None


def test_chunks_of_several_lengths_or_with_holes_are_refused(tmp_path):
    demos = [with_chunks(episode()), with_chunks(episode(1), length=8)]
    with pytest.raises(DatasetError, match='chunks of 5 and 8 actions'):
        write_store(tmp_path / 'store', demos, tiny_tokenizer(), IMAGE_SIZE)
    chunks = demos[0].chunks.copy()
    chunks[3, 2, 1] = np.nan
    with pytest.raises(DatasetError, match='chunk label is NaN in part'):
        replace(demos[0], chunks=chunks)


def test_an_episode_is_found_without_looking_at_all_others(store, monkeypatch):
    """Pins a bug: each search went through all, 16 ms where there were 179,156."""
    monkeypatch.setattr(store, 'episodes', ())
    executed = episode(2).executed
    assert store.find('task0', 'demo_2', executed).start == 24
    assert store.find('task0', 'demo_2', executed + 1) is None
    assert store.find('task1', 'demo_2', executed) is None


@pytest.mark.parametrize(('before', 'encoded'), [(False, 1 + 12), (True, 2)])
def test_of_a_reused_store_only_what_it_lacks_is_encoded(tmp_path, monkeypatch, before, encoded):
    one = with_wrist(episode(0))
    reuse = write_store(tmp_path / 'old', [one if before else episode(0)], tiny_tokenizer(),
                        IMAGE_SIZE)
    counted, encode = [], store_writing._encode
    monkeypatch.setattr(store_writing, '_encode', lambda frames, *rest: (
        counted.append(len(frames)), encode(frames, *rest))[1])
    store = write_store(tmp_path / 'new', [one], tiny_tokenizer(), IMAGE_SIZE, reuse)
    assert sum(counted) == encoded
    np.testing.assert_array_equal(store.wrist_codes, tiny_tokenizer().encode(one.wrist))


def test_the_command_reads_the_wrist_camera_where_it_is_asked_to(tmp_path, capsys):
    write_hdf5(tmp_path / 'demos' / 'pick_demo.hdf5', [with_wrist(episode(0))])
    write_hdf5(tmp_path / 'without' / 'pick_demo.hdf5', [episode(0)])
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    common = ['--tokenizer', str(tmp_path / 'tokenizer'), '--image-size', str(IMAGE_SIZE)]
    for name, flags in (('both', ['--wrist']), ('one', [])):
        assert main([str(tmp_path / 'demos'), '--out', str(tmp_path / name), *common, *flags]) == 0
    assert TokenStore.open(tmp_path / 'both').wrist_codes is not None
    assert TokenStore.open(tmp_path / 'one').wrist_codes is None
    assert main([str(tmp_path / 'without'), '--out', str(tmp_path / 'none'), *common,
                 '--wrist']) == 1
    assert 'no obs/eye_in_hand_rgb in it' in capsys.readouterr().err


def test_the_split_is_made_within_each_task(tmp_path):
    store = TokenStore.open(small_store(tmp_path, num_episodes=20, steps=3)[0])
    train, held_out = store.split('numeric')
    assert [len(train), len(held_out)] == [18, 2]
    assert {one.task for one in held_out} == {'task0', 'task1'}
    assert not {(one.task, one.name) for one in train} & {(one.task, one.name)
                                                          for one in held_out}


def test_another_tokenizer_is_refused(tmp_path):
    folder, _ = small_store(tmp_path)
    TokenStore.open(folder, tokenizer_fingerprint(tiny_tokenizer()))
    with pytest.raises(DatasetError, match='make the store again'):
        TokenStore.open(folder, tokenizer_fingerprint(tiny_tokenizer(seed=1)))


@pytest.mark.parametrize('damage', ['truncated', 'deleted', 'no header', 'other length'])
def test_a_damaged_store_is_refused(tmp_path, damage):
    folder, _ = small_store(tmp_path)
    codes = folder / 'codes.npy'
    if damage == 'truncated':
        codes.write_bytes(codes.read_bytes()[:-10])
    elif damage == 'deleted':
        codes.unlink()
    elif damage == 'no header':
        (folder / 'store.json').unlink()
    else:
        np.save(codes, np.load(codes)[:-1])
    with pytest.raises(DatasetError):
        TokenStore.open(folder)


def test_nothing_to_store_is_refused_and_leaves_no_folder(tmp_path):
    with pytest.raises(DatasetError, match='no episode is left'):
        write_store(tmp_path / 'store', [], tiny_tokenizer(), IMAGE_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path, monkeypatch):
    """Pins a bug: NumPy's error has no number, and nothing was said of the disk."""
    def full(path, array):
        with Path('/dev/full').open('wb') as disk:
            np.resize(array, 40_000).tofile(disk)  # of a few bytes NumPy says nothing
    monkeypatch.setattr(store_writing.np, 'save', full)
    with pytest.raises(TrainingError, match='the disk is full'):
        write_store(tmp_path / 'store', [episode()], tiny_tokenizer(), IMAGE_SIZE)
    assert list(tmp_path.iterdir()) == []


def test_two_demonstrations_of_one_name_are_refused_before_the_second_is_encoded(
        tmp_path, monkeypatch):
    tokenizer, encoded = tiny_tokenizer(), []
    monkeypatch.setattr(tokenizer, 'encode', lambda frames: (
        encoded.append(len(frames)), type(tokenizer).encode(tokenizer, frames))[1])
    with pytest.raises(DatasetError, match='pick, demo_0, so they cannot be told apart'):
        write_store(tmp_path / 'store', [episode(), episode()], tokenizer, IMAGE_SIZE)
    assert encoded == [12]


def test_frames_of_which_no_prompt_counts_the_codes_are_refused_before_they_are_encoded(tmp_path):
    def read():
        pytest.fail('a demonstration was read')
        yield
    with pytest.raises(ConfigError, match=r'image size is 144 px, expected a multiple of 32.*128'):
        write_store(tmp_path / 'store', read(), tiny_tokenizer(), 144)


def test_the_data_fingerprint_changes_with_one_action(tmp_path):
    one, other = episode(), episode()
    other.actions[3, 2] += 0.01
    stores = [write_store(tmp_path / name, [demo], tiny_tokenizer(), IMAGE_SIZE)
              for name, demo in (('a', one), ('b', other))]
    assert stores[0].header.data != stores[1].header.data
    assert stores[0].header.tokenizer == stores[1].header.tokenizer


def test_the_action_range_holds_every_action_and_refuses_a_constant(tmp_path):
    store = write_store(tmp_path / 'a', [episode()], tiny_tokenizer(), IMAGE_SIZE)
    low, high = store.action_range(store.episodes, 5)
    assert (store.actions >= low).all() and (store.actions <= high).all()
    still = episode()
    still.actions[:, 3] = still.executed[:, 3] = 0
    store = write_store(tmp_path / 'b', [still], tiny_tokenizer(), IMAGE_SIZE)
    with pytest.raises(ConfigError, match=r'\[3\] never change'):
        store.action_range(store.episodes, 5)


def test_the_action_range_holds_the_chunks_that_are_learned(tmp_path):
    """Pins a bug: a label of a chunk beyond all labels of steps was cut to their range."""
    one = with_chunks(episode())
    one.chunks[3] = np.linspace(1.0, 1.4, 5)[:, None]
    store = write_store(tmp_path / 'a', [one], tiny_tokenizer(), IMAGE_SIZE)
    assert store.action_range(store.episodes, 5)[1] == pytest.approx(1.4)
    assert store.action_range(store.episodes, 4)[1] == pytest.approx(1.3), 'one is not learned'


def test_the_command_makes_a_store_and_tells_errors_in_a_sentence(tmp_path, capsys):
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    write_hdf5(tmp_path / 'demos' / 'pick_demo.hdf5', [episode(0), episode(1)])
    arguments = [str(tmp_path / 'demos'), '--tokenizer', str(tmp_path / 'tokenizer'), '--out',
                 str(tmp_path / 'store'), '--image-size', str(IMAGE_SIZE)]
    assert main(arguments) == 0
    assert len(TokenStore.open(tmp_path / 'store').episodes) == 2
    assert main(arguments) == 1
    assert 'exists' in capsys.readouterr().err


@pytest.mark.parametrize('size', ['0', '-32'])
def test_the_command_refuses_pictures_without_a_size(tmp_path, capsys, size):
    """Pins a bug: they ended in PIL's traceback."""
    with pytest.raises(SystemExit):
        main([str(tmp_path), '--tokenizer', str(tmp_path), '--out', str(tmp_path / 'store'),
              '--image-size', size])
    assert 'expected a whole number from 1' in capsys.readouterr().err
    with pytest.raises(ConfigError, match='take 32'):
        write_store(tmp_path / 'store', [episode()], tiny_tokenizer(), int(size))


def test_the_command_ends_on_ctrl_c_in_a_sentence(tmp_path, monkeypatch, capsys):
    """Pins a bug: it ended in a traceback."""
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(tokenise, 'load_image_tokenizer', interrupted)
    assert main([str(tmp_path), '--tokenizer', str(tmp_path), '--out', str(tmp_path)]) == 130
    assert 'nothing was written' in capsys.readouterr().err


def test_a_store_takes_over_what_an_earlier_one_has(tmp_path, monkeypatch):
    """More demonstrations of the same tokenizer cost only the encoding of what is new."""
    first = TokenStore.open(small_store(tmp_path, num_episodes=2)[0])
    episodes = [episode(i, 12, INSTRUCTIONS[i % 2], f'task{i % 2}') for i in range(3)]
    episodes[1] = replace(episodes[1], executed=episodes[1].executed + 0.5)
    encoded = []
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(tokenizer, 'encode', lambda frames: (
        encoded.append(len(frames)), type(tokenizer).encode(tokenizer, frames))[1])
    size = first.header.image_size
    second = write_store(tmp_path / 'second', episodes, tokenizer, size, reuse=first)
    one_to_compare = 1
    assert encoded == [one_to_compare, len(episodes[1].frames), len(episodes[2].frames)]
    fresh = write_store(tmp_path / 'fresh', episodes, tokenizer, size)
    assert second.header.data == fresh.header.data


def test_a_store_takes_over_no_codes_of_other_pictures(tmp_path):
    """The same seed and actions, recorded with another camera or other assets; another size."""
    first = TokenStore.open(small_store(tmp_path, num_episodes=1)[0])
    size, tokenizer = first.header.image_size, tiny_tokenizer()
    before = episode(0, 12, INSTRUCTIONS[0], 'task0')
    again = replace(before, frames=255 - before.frames)
    assert np.array_equal(first.codes_of(again)['codes'], tokenizer.encode(before.frames).numpy())
    second = write_store(tmp_path / 'second', [again], tokenizer, size, reuse=first)
    np.testing.assert_array_equal(second.codes, tokenizer.encode(again.frames).numpy())
    with pytest.raises(DatasetError, match=rf'{size} px, 32 px are asked.*--image-size {size}'):
        write_store(tmp_path / 'third', [before], tokenizer, 32, reuse=first)

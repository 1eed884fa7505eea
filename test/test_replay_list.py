# SPDX-License-Identifier: Apache-2.0
"""No filtered demonstration is tokenised unless its replay was seen to succeed."""

import numpy as np
import pytest
from training_data import IMAGE_SIZE, episode, tiny_tokenizer, write_hdf5

from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.libero_hdf5 import task_name
from worldvla_ros.training.replay_list import (
    Replay,
    ReplayList,
    actions_digest,
    kept_steps,
)
from worldvla_ros.training.store import TokenStore
from worldvla_ros.training.tokenise import main


def waiting(number):
    """Return an episode that waits in its steps 4 and 5."""
    one = episode(number)
    one.actions[4:6, :6] = one.executed[4:6, :6] = 0
    return one


@pytest.fixture
def demos(tmp_path):
    """A folder with three demonstrations, of which the list says that the second fails."""
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    episodes = [waiting(number) for number in range(3)]
    write_hdf5(tmp_path / 'demos' / 'pick_demo.hdf5', episodes)
    ReplayList(True, [
        Replay('pick', one.name, actions_digest(one.actions, one.executed), '', number != 1,
               12, 10)
        for number, one in enumerate(episodes)]).save(tmp_path / 'replays.json')
    return tmp_path


def tokenise(folder, *options):
    return main([str(folder / 'demos'), '--tokenizer', str(folder / 'tokenizer'), '--out',
                 str(folder / 'store'), '--image-size', str(IMAGE_SIZE), *options])


def test_only_demonstrations_that_still_succeed_are_tokenised_without_no_ops(demos):
    assert tokenise(demos, '--drop-no-ops', '--only', str(demos / 'replays.json')) == 0
    stored = TokenStore.open(demos / 'store').episodes
    assert [(one.name, one.length) for one in stored] == [('demo_0', 10), ('demo_2', 10)]


def test_no_ops_are_not_dropped_unseen(demos, capsys):
    assert tokenise(demos, '--drop-no-ops') == 1
    assert 'worldvla_sim.replay' in capsys.readouterr().err
    whole = ReplayList.load(demos / 'replays.json')
    whole.drop_no_ops = False
    whole.save(demos / 'whole.json')
    assert tokenise(demos, '--drop-no-ops', '--only', str(demos / 'whole.json')) == 1
    assert tokenise(demos, '--only', str(demos / 'replays.json')) == 1
    assert 'a list of whole replays' in capsys.readouterr().err
    assert tokenise(demos, '--only', str(demos / 'whole.json')) == 0
    assert len(TokenStore.open(demos / 'store').episodes) == 2


def test_other_actions_than_those_replayed_are_refused(demos, capsys):
    write_hdf5(demos / 'demos' / 'pick_demo.hdf5', [waiting(number) for number in (0, 3)])
    assert tokenise(demos, '--drop-no-ops', '--only', str(demos / 'replays.json')) == 1
    assert 'pick, demo_3 is not in the list' in capsys.readouterr().err
    assert not (demos / 'store').exists()


def test_an_error_is_no_answer(tmp_path):
    replays = ReplayList(True, [Replay('pick', 'demo_0', 'a', '', False, 0, 0, 'no renderer')])
    with pytest.raises(DatasetError, match=r'had an error \(no renderer\)'):
        replays.succeeded('pick', 'demo_0', 'a')


def test_a_list_comes_back_as_it_was_saved_and_other_files_are_refused(demos):
    replays = ReplayList.load(demos / 'replays.json')
    replays.save(demos / 'again.json')
    assert ReplayList.load(demos / 'again.json') == replays
    for content in ('', '{}', '{"format": "worldvla_ros/replay/1"}', '[]'):
        (demos / 'again.json').write_text(content)
        with pytest.raises(DatasetError, match='no list of replays'):
            ReplayList.load(demos / 'again.json')


def test_a_step_is_kept_when_its_label_or_its_execution_moves():
    still, moving = np.zeros((3, 7)), np.zeros((3, 7))
    moving[1, 0] = 0.5
    np.testing.assert_array_equal(kept_steps(still, moving), kept_steps(moving, still))
    assert kept_steps(moving, still)[1] and not kept_steps(still, still)[1]


def test_tasks_are_named_as_training_names_them(tmp_path):
    (tmp_path / 'suite').mkdir()
    file = tmp_path / 'suite' / 'pick_demo.hdf5'
    file.touch()
    assert task_name(file, tmp_path) == 'suite/pick'
    assert task_name(file, file) == 'pick'

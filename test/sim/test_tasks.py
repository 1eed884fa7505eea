# SPDX-License-Identifier: Apache-2.0
"""Suites, instructions and initial states are LIBERO's own, read without torch."""

import pickle
import zipfile

import numpy as np
import pytest

from worldvla_ros.errors import SimulationError
from worldvla_sim import tasks
from worldvla_sim.tasks import SUITES, Task, initial_states, load_task, suite_tasks

EVERY_TASK = [task for suite in SUITES for task in suite_tasks(suite)]


class Malicious:
    """Unpickles into a call."""

    def __reduce__(self):
        return print, ('code ran',)


def state_file(tmp_path, monkeypatch, content):
    path = tmp_path / 'states.pruned_init'
    path.write_bytes(content) if isinstance(content, bytes) else None
    if not isinstance(content, bytes):
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('archive/data.pkl', pickle.dumps(content))
    monkeypatch.setattr(Task, 'init_states_path', path)
    initial_states.cache_clear()
    return load_task('libero_object', 0)


def test_there_are_four_suites_of_ten_tasks():
    assert len(EVERY_TASK) == 40
    assert [task.max_steps for task in EVERY_TASK[::10]] == [220, 280, 300, 520]


@pytest.mark.parametrize('task', EVERY_TASK, ids=lambda task: f'{task.suite}-{task.index}')
def test_every_task_has_its_file_fifty_states_and_a_plain_instruction(task):
    assert task.bddl_path.is_file()
    assert initial_states(task).shape[0] == 50
    assert np.isfinite(initial_states(task)).all()
    assert task.instruction == task.instruction.lower()
    assert 'scene' not in task.instruction.split()
    assert '_' not in task.instruction


def test_instructions_drop_the_scene_and_keep_the_words():
    assert load_task('libero_10', 2).instruction == (
        'turn on the stove and put the moka pot on it')
    assert load_task('libero_object', 9).instruction == (
        'pick up the orange juice and place it in the basket')


def test_initial_states_equal_what_torch_loads():
    torch = pytest.importorskip('torch')
    task = load_task('libero_goal', 3)
    expected = torch.load(task.init_states_path, weights_only=False)
    np.testing.assert_array_equal(initial_states(task), expected)


def test_initial_states_cannot_be_changed_by_their_reader():
    with pytest.raises(ValueError, match='read-only'):
        initial_states(load_task('libero_object', 0))[0, 0] = 1.0


def test_a_state_file_with_code_is_refused(tmp_path, monkeypatch, capsys):
    task = state_file(tmp_path, monkeypatch, Malicious())
    with pytest.raises(SimulationError, match=r'builtins\.print'):
        initial_states(task)
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('content', [b'', b'not a zip', {'a': 1}, np.zeros(3)])
def test_a_damaged_state_file_is_named(tmp_path, monkeypatch, content):
    task = state_file(tmp_path, monkeypatch, content)
    with pytest.raises(SimulationError, match=r'states\.pruned_init'):
        initial_states(task)


def test_unknown_suite_lists_the_suites():
    with pytest.raises(SimulationError, match='libero_spatial, libero_object'):
        suite_tasks('libero_objects')


@pytest.mark.parametrize('index', [-1, 10])
def test_unknown_task_lists_the_tasks(index):
    with pytest.raises(SimulationError, match='9: put the wine bottle on the rack'):
        load_task('libero_goal', index)


@pytest.fixture(autouse=True)
def forget_states():
    yield
    tasks.initial_states.cache_clear()

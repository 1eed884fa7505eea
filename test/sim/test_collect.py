# SPDX-License-Identifier: Apache-2.0
"""Demonstrations are whole, replay, and read back in LIBERO's conventions."""

import errno
import json
from pathlib import Path
import shutil

import h5py
import numpy as np
from PIL import Image
import pytest

from worldvla_ros.errors import ConfigError, RecordingError, SimulationError
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_ros.recording.demonstration_file import (
    add_demonstration,
    demonstration_names,
    whole_file,
)
from worldvla_ros.recording.timeline import RecordedEpisode
from worldvla_ros.training.libero_hdf5 import read_episodes
from worldvla_sim import collect, view_demos
from worldvla_sim.dagger import LearnerSettings
from worldvla_sim.demonstrations import (
    DemonstrationRecorder,
    open_demonstrations,
    write_demonstration,
)
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.tasks import load_task

TASK = 1
COMMAND = ['--suite', 'libero_object', '--tasks', str(TASK), '--per-task', '1', '--assets',
           'builtin', '--image-size', '64', '--msaa', '0', '--noise', '0.1']


@pytest.fixture(scope='module')
def collected(tmp_path_factory):
    """A folder made by the command, and its one file."""
    out = tmp_path_factory.mktemp('demos')
    assert collect.main([*COMMAND, '--out', str(out)]) == 0
    return out, out / f'{load_task("libero_object", TASK).name}_demo.hdf5'


@pytest.fixture(scope='module')
def demo(collected):
    """The one demonstration, as training reads it."""
    demo, = read_episodes(collected[1])
    return demo


@pytest.fixture(scope='module')
def recorded():
    """Three steps with both cameras."""
    with LiberoEnv('libero_object', TASK, image_size=32, wrist=True, assets='builtin') as env:
        recorder = DemonstrationRecorder(env)
        observation = env.reset(seed=1, settle_steps=1)
        for _ in range(3):
            action = np.full(7, 0.1)
            recorder.add(observation, action, action * 2)
            observation = env.step(action)
        return recorder.finish(seed=1)


def test_file_has_liberos_layout(collected, demo):
    with h5py.File(collected[1]) as file:
        data = file['data']
        group = data['demo_0']
        steps = group.attrs['num_samples']
        assert (data.attrs['num_demos'], data.attrs['total']) == (1, steps)
        assert json.loads(data.attrs['problem_info'])['language_instruction'] == demo.instruction
        shapes = {name: group[name].shape for name in (
            'actions', 'states', 'robot_states', 'dones', 'rewards', 'obs/agentview_rgb',
            'obs/ee_pos', 'obs/ee_ori', 'obs/ee_states', 'obs/gripper_states',
            'obs/joint_states')}
        assert shapes == {
            'actions': (steps, 7), 'states': (steps, 110), 'robot_states': (steps, 9),
            'dones': (steps,), 'rewards': (steps,), 'obs/agentview_rgb': (steps, 64, 64, 3),
            'obs/ee_pos': (steps, 3), 'obs/ee_ori': (steps, 3), 'obs/ee_states': (steps, 6),
            'obs/gripper_states': (steps, 2), 'obs/joint_states': (steps, 7)}
        assert group['dones'][:].tolist() == [0] * (steps - 1) + [1]
        np.testing.assert_array_equal(group.attrs['init_state'], group['states'][0])


def test_executed_actions_replay_to_the_recorded_states_and_to_success(collected, demo):
    with open_demonstrations(collected[1]) as data:
        seed, states = int(data['demo_0'].attrs['seed']), data['demo_0/states'][:]
    with LiberoEnv('libero_object', TASK, image_size=64, msaa=0, assets='builtin') as env:
        observation = env.reset(seed=seed)
        np.testing.assert_array_equal(observation.agentview, demo.frames[0])
        for state, action in zip(states, demo.executed, strict=True):
            np.testing.assert_array_equal(env.state(), state)
            env.step(action)
        assert env.success


def test_labels_are_the_clean_actions(demo):
    difference = demo.executed - demo.actions
    assert 0.03 < difference[:, :3].std() < 0.2
    assert (difference[:, 6] == 0).all()
    assert np.abs(demo.actions[:, :3]).max() <= 0.9375


def test_images_are_stored_as_robosuite_renders_them(collected, demo):
    with open_demonstrations(collected[1]) as data:
        stored = data['demo_0/obs/agentview_rgb'][0]
    np.testing.assert_array_equal(stored[::-1, ::-1], demo.frames[0])


def test_a_second_run_has_nothing_to_do_and_leaves_nothing_else(collected, capsys):
    out, file = collected
    before = file.stat().st_mtime_ns
    assert collect.main([*COMMAND, '--out', str(out)]) == 0
    assert file.stat().st_mtime_ns == before
    assert sorted(path.name for path in out.iterdir()) == ['collection.json', file.name]


def test_a_second_run_tells_the_failures_of_the_first(collected, tmp_path, capsys):
    """Pins a bug: it said that no attempt at a complete task had failed."""
    for path in collected[0].iterdir():
        shutil.copy(path, tmp_path)
    with h5py.File(tmp_path / collected[1].name, 'r+') as file:
        file['data'].attrs['num_failed'] = 3
    assert collect.main([*COMMAND, '--out', str(tmp_path)]) == 0
    assert '1 demonstrations, 3 failed attempts dropped' in capsys.readouterr().out


def test_a_folder_of_other_settings_is_not_mixed(collected, capsys):
    assert collect.main([*COMMAND, '--out', str(collected[0]), '--seed', '3']) == 2
    assert 'other settings' in capsys.readouterr().err


@pytest.mark.parametrize(('options', 'expected'), [
    ([], 256), (['--policy', 'hold'], 256), (['--policy', 'worldvla-mini'], 192),
    (['--policy', 'worldvla-mini', '--image-size', '192'], 192),
    (['--policy', 'hold', '--image-size', '64'], 64)])
def test_pictures_have_the_size_that_the_policy_needs(options, expected, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(collect, 'collect', lambda settings, *rest, **more: (
        asked.append(settings.image_size) or {}))
    assert collect.main(['--suite', 'libero_object', '--assets', 'builtin', '--out',
                         str(tmp_path), *options]) == 0
    assert asked == [expected]


def test_a_size_that_the_policy_does_not_see_is_refused_before_anything_is_written(
        tmp_path, capsys):
    assert collect.main([*COMMAND, '--policy', 'worldvla-mini', '--out',
                         str(tmp_path / 'new')]) == 2
    assert 'needs images of 192 px, got --image-size 64' in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(('wrong', 'message'), [
    (['--suite', 'libero_objct'], "unknown suite 'libero_objct'"),
    (['--tasks', '12'], 'has no task 12'),
    (['--seed', '20261128'], '--seed must be from 0 to 42948, got 20261128'),
    (['--seed=-1'], '--seed must be from 0 to 42948, got -1')])
def test_a_command_that_cannot_work_leaves_no_folder_that_refuses_the_right_one(
        wrong, message, tmp_path, capsys):
    """Pins a bug: settings were noted before they were known to work, and held the folder."""
    assert collect.main([*COMMAND, '--out', str(tmp_path / 'new'), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()


def test_a_policy_that_reads_the_wrist_camera_is_refused_without_it_before_anything_is_written(
        tmp_path, monkeypatch, capsys):
    """Pins a bug: the first attempt found that out, and the folder was without a wrist by then."""
    (tmp_path / 'reader').mkdir()
    PolicySettings('stub', False, reads_wrist=True).save(tmp_path / 'reader' / POLICY_FILE)
    learner = LearnerSettings(str(tmp_path / 'reader'), 'sha256:0')
    monkeypatch.setattr(collect, 'learner_settings', lambda name, chunk: learner)
    policy = ['--policy', 'reader', '--image-size', '256', '--out', str(tmp_path / 'new')]
    assert collect.main([*COMMAND, *policy]) == 2
    assert 'needs the wrist camera' in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()
    monkeypatch.setattr(collect, 'collect', lambda *_, **__: {})
    assert collect.main([*COMMAND, *policy, '--wrist']) == 0


def test_chunks_are_asked_for_only_where_a_policy_has_the_arm(tmp_path, capsys):
    assert collect.main([*COMMAND, '--chunk', '5', '--out', str(tmp_path / 'new')]) == 2
    assert '--chunk is of the steps at which --policy has the arm' in capsys.readouterr().err
    assert not (tmp_path / 'new').exists()


NOTE = 'collection.json'


def note(folder, **settings):
    collect._check_settings(folder, collect.CollectionSettings('libero_object', 'builtin',
                                                               **settings))
    return (folder / NOTE).read_text()


@pytest.mark.parametrize('broken', [False, True])
def test_a_folder_without_demonstrations_or_attempts_is_free(tmp_path, broken):
    """Pins a bug: a run that had recorded nothing, or died as it wrote, held the folder."""
    first = note(tmp_path)
    if broken:
        (tmp_path / NOTE).write_text(first[:20])
    assert json.loads(note(tmp_path, seed=3))['seed'] == 3
    for name in ('.task.attempts/00000.failed', '.task.attempts/00001.hdf5', 'task_demo.hdf5'):
        made = tmp_path / name
        made.parent.mkdir(exist_ok=True)
        made.touch()
        with pytest.raises(ConfigError, match='made with other settings'):
            note(tmp_path)
        made.unlink()
    assert json.loads(note(tmp_path))['seed'] == 0


def test_settings_are_written_whole_and_only_when_they_change(tmp_path, monkeypatch):
    note(tmp_path)
    (tmp_path / 'task_demo.hdf5').touch()
    before = (tmp_path / NOTE).stat().st_ino
    note(tmp_path)
    assert (tmp_path / NOTE).stat().st_ino == before
    older = json.loads((tmp_path / NOTE).read_text())
    del older['learner']
    (tmp_path / NOTE).write_text(json.dumps(older))
    with monkeypatch.context() as full:
        full.setattr(Path, 'replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'full')))
        with pytest.raises(ConfigError, match='full'):
            note(tmp_path)
    assert json.loads((tmp_path / NOTE).read_text()) == older
    assert 'learner' in note(tmp_path)


def test_killed_runs_continue_with_attempts_that_were_not_played(tmp_path):
    settings = collect.CollectionSettings('libero_object', 'builtin')
    folder = collect.AttemptFolder(tmp_path, settings, TASK, per_task=3)
    folder.path.mkdir()
    folder.success_file(0).touch()
    folder.failure_marker(1).touch()
    assert [attempt.number for attempt in folder.next_attempts()] == [2, 3]


def test_a_task_that_never_succeeds_ends_in_an_error(tmp_path):
    settings = collect.CollectionSettings('libero_object', 'builtin')
    folder = collect.AttemptFolder(tmp_path, settings, TASK, per_task=1)
    folder.path.mkdir()
    for number in range(5):
        folder.failure_marker(number).touch()
    with pytest.raises(SimulationError, match='5 attempts failed'):
        folder.next_attempts()


def test_a_full_disk_is_named_and_leaves_no_file(tmp_path, recorded):
    with (pytest.raises(RecordingError, match='disk is full'),
          whole_file(tmp_path / 'demo.hdf5') as file):
        write_demonstration(file, 'demo_0', recorded)
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / 'file').touch()
    assert collect.main([*COMMAND, '--out', str(tmp_path / 'file' / 'demos')]) == 2
    assert str(tmp_path / 'file') in capsys.readouterr().err


def test_both_cameras_are_written_and_read_back(recorded, tmp_path):
    path = tmp_path / f'{load_task("libero_object", TASK).name}_demo.hdf5'
    with whole_file(path) as file:
        write_demonstration(file.create_group('data'), 'demo_0', recorded)
        np.testing.assert_array_equal(file['data/demo_0/states'], recorded.states)
    read, = read_episodes(path, wrist=True)
    np.testing.assert_array_equal(read.frames, recorded.seen.agentview)
    np.testing.assert_array_equal(read.wrist, recorded.seen.wrist)
    np.testing.assert_array_equal(read.actions, recorded.actions)
    np.testing.assert_array_equal(read.executed, recorded.executed_actions)
    assert read.instruction == recorded.instruction and read.success


def test_names_are_in_numeric_order():
    assert demonstration_names({'demo_10': 0, 'demo_9': 0, 'mask': 0}) == ['demo_9', 'demo_10']


@pytest.mark.parametrize('content', [b'', b'not hdf5'])
def test_unreadable_files_are_named(tmp_path, content, capsys):
    path = tmp_path / 'bad.hdf5'
    path.write_bytes(content)
    assert view_demos.main([str(path)]) == 2
    assert f'{path} is no complete demonstration file' in capsys.readouterr().err


def test_a_demonstration_without_pictures_is_refused_as_it_is_read(collected, tmp_path, capsys):
    """It was read as one whose pictures are None, which crashed whoever looked at them."""
    path = tmp_path / 'blind.hdf5'
    shutil.copyfile(collected[1], path)
    with h5py.File(path, 'r+') as file:
        del file['data/demo_0/obs/agentview_rgb']
    assert view_demos.main([str(path)]) == 2
    assert 'agentview_rgb' in capsys.readouterr().err


def test_viewer_makes_table_sheet_video_and_histogram(collected, tmp_path, capsys):
    pictures = {name: tmp_path / name for name in ('sheet.png', 'demo.mp4', 'actions.png')}
    assert view_demos.main([
        str(collected[1]), '--sheet', str(pictures['sheet.png']), '--mp4',
        str(pictures['demo.mp4']), '--histogram', str(pictures['actions.png'])]) == 0
    table = capsys.readouterr().out
    assert '1 demonstrations' in table
    assert '0 no-ops' in table
    assert np.asarray(Image.open(pictures['sheet.png'])).std() > 10
    assert pictures['demo.mp4'].read_bytes()[4:8] == b'ftyp'
    assert np.asarray(Image.open(pictures['actions.png'])).std() > 10
    assert set(tmp_path.iterdir()) == set(pictures.values())


def test_viewer_shows_robosuites_pictures_unmirrored_and_a_robots_as_they_are(
        collected, demo, tmp_path, capsys):
    np.testing.assert_array_equal(view_demos.natural(demo, collected[1]), demo.frames[:, :, ::-1])
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    path, _ = add_demonstration(tmp_path, 'open the box', RecordedEpisode(
        frames, np.full((4, 7), 0.1), None, None, None, None))
    episode, = read_episodes(path)
    np.testing.assert_array_equal(view_demos.natural(episode, path), frames)
    assert view_demos.main([str(path), '--sheet', str(tmp_path / 'sheet.png')]) == 0
    assert capsys.readouterr().out.startswith('open the box\n1 demonstrations, 4 steps')


def test_viewer_says_how_many_demonstrations_there_are(collected, capsys):
    assert view_demos.main([str(collected[1]), '--demo', '7']) == 2
    assert 'has 1 demonstrations, demo_0 to demo_0; there is no demo_7' in capsys.readouterr().err


@pytest.mark.parametrize('option', ['--mp4', '--sheet', '--histogram'])
def test_a_picture_in_a_folder_that_is_missing_is_refused_in_a_sentence(collected, tmp_path,
                                                                         capsys, option):
    """Pins a bug: --mp4 ended in the traceback of the program that encodes."""
    file = tmp_path / 'nowhere' / 'picture.mp4'
    assert view_demos.main([str(collected[1]), option, str(file)]) == 2
    assert f'cannot write {file}: there is no folder {file.parent}' in capsys.readouterr().err

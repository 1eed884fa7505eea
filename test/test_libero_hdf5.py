# SPDX-License-Identifier: Apache-2.0
"""Demonstration files: our own recordings, the official layout, and what is refused."""

from dataclasses import replace
import importlib.util
import json

import h5py
import numpy as np
import pytest
from training_data import episode, with_wrist, write_hdf5

from worldvla_ros.recording.demonstration_file import ArmTrack, whole_file
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.libero_hdf5 import (
    demonstration_files,
    episode_actions,
    read_episodes,
)

LAYOUTS = ('ours', 'converter', 'replayed')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_episodes_come_back_upright_in_phase_and_in_numeric_order(tmp_path, layout):
    path = tmp_path / 'suite' / 'pick_up_the_red_block_demo.hdf5'
    written = [episode(number) for number in (10, 9)]
    write_hdf5(path, written, layout)
    nine, ten = read_episodes(path, tmp_path)
    assert (nine.name, ten.name) == ('demo_9', 'demo_10')
    assert nine.task == 'suite/pick_up_the_red_block'
    np.testing.assert_array_equal(nine.frames, written[1].frames)
    np.testing.assert_array_equal(nine.actions, written[1].actions)
    np.testing.assert_array_equal(nine.executed, written[1].executed)
    assert nine.instruction == written[1].instruction and nine.success


@pytest.mark.parametrize('missing', ['states', 'obs/joint_states'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_without_the_arms_joints_the_phase_is_what_its_program_makes(tmp_path, layout, missing):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()], layout)
    with h5py.File(path, 'r+') as file:
        del file['data/demo_0'][missing]
    back, = read_episodes(path)
    np.testing.assert_array_equal(back.frames, episode().frames)
    np.testing.assert_array_equal(back.actions, episode().actions)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_wrist_camera_is_read_upright_and_in_phase_where_it_is_asked_for(tmp_path, layout):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [with_wrist(episode())], layout)
    back, = read_episodes(path, wrist=True)
    np.testing.assert_array_equal(back.wrist, with_wrist(episode()).wrist)
    np.testing.assert_array_equal(back.frames, episode().frames)
    kept = back.kept(np.arange(12) % 2 == 0)
    np.testing.assert_array_equal(kept.wrist, back.wrist[::2])
    without, = read_episodes(path)
    assert without.wrist is None


def test_a_wrist_camera_that_was_not_recorded_is_missed(tmp_path):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()])
    with pytest.raises(DatasetError, match='no obs/eye_in_hand_rgb in it'):
        list(read_episodes(path, wrist=True))


def test_a_file_with_the_converters_mark_that_was_rendered_again_in_phase_is_read_so(tmp_path):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()], 'replayed')
    with h5py.File(path, 'r+') as file:
        file['data'].attrs['macros_image_convention'] = 'opengl'
    back, = read_episodes(path)
    np.testing.assert_array_equal(back.actions, episode().actions)


@pytest.mark.parametrize('layout', ['ours', 'converter'])
def test_the_state_of_the_arm_is_relative_to_the_base(tmp_path, layout):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()], layout)
    back, = read_episodes(path)
    np.testing.assert_allclose(back.states, np.tile([0.0] * 6 + [0.08], (12, 1)), atol=1e-9)


def test_a_replayed_file_says_its_task_by_its_name_alone(tmp_path):
    path = tmp_path / 'KITCHEN_SCENE10_put_the_butter_away_demo.hdf5'
    write_hdf5(path, [episode()], 'replayed')
    back, = read_episodes(path)
    assert back.instruction == 'put the butter away' and back.states is None


def test_a_file_that_does_not_say_where_the_base_is_has_no_states(tmp_path):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()])
    with h5py.File(path, 'r+') as file:
        del file['data/demo_0'].attrs['base_position']
    back, = read_episodes(path)
    assert back.states is None


def test_labels_and_executed_actions_stay_apart(tmp_path):
    one = episode()
    one.executed[:] += 0.01
    write_hdf5(tmp_path / 'a_demo.hdf5', [one])
    back, = read_episodes(tmp_path / 'a_demo.hdf5')
    np.testing.assert_allclose(back.executed - back.actions, 0.01)


def test_what_the_simulator_records_is_what_training_reads(tmp_path):
    if importlib.util.find_spec('robosuite') is None:
        pytest.skip('needs the simulator (hf-libero, robosuite)')
    from worldvla_sim.demonstrations import Demonstration, Seen, write_demonstration
    one, steps = episode(), 12
    def zeros(width):
        return np.zeros((steps, width))
    quaternions = np.tile([0.0, 0, 0, 1], (steps, 1))
    demo = Demonstration('libero_object', 3, one.instruction, one.actions, one.executed + 0.1,
                         np.ones(steps, bool), zeros(5),
                         Seen(one.frames, None, zeros(7),
                              ArmTrack(zeros(2), zeros(3), quaternions)))
    with whole_file(tmp_path / 'pick_demo.hdf5') as file:
        write_demonstration(file.create_group('data'), 'demo_0', demo)
    back, = read_episodes(tmp_path / 'pick_demo.hdf5')
    np.testing.assert_array_equal(back.frames, one.frames)
    np.testing.assert_array_equal(back.executed, one.executed + 0.1)
    assert back.instruction == one.instruction and back.success


def test_tasks_are_chosen_by_a_pattern(tmp_path):
    for name in ('pick_up_the_milk', 'pick_up_the_butter'):
        write_hdf5(tmp_path / 'bc' / f'{name}_demo.hdf5', [episode()])
    milk, = demonstration_files(tmp_path, '*milk*')
    assert milk.name == 'pick_up_the_milk_demo.hdf5'
    with pytest.raises(DatasetError, match=r'no demonstrations \(soup\*_demo'):
        demonstration_files(tmp_path, 'soup*')


@pytest.mark.parametrize('layout', ['ours', 'converter'])
@pytest.mark.parametrize('bddl, sentence', [
    ('bddl_files/libero_object/pick_up_the_milk.bddl', 'pick up the milk'),
    ('KITCHEN_SCENE3_turn_on_the_stove.bddl', 'turn on the stove'),
    ('LIVING_ROOM_SCENE2_put_both.bddl', 'put both')])
def test_the_sentence_is_that_of_the_evaluation_and_not_the_text_within(
        tmp_path, layout, bddl, sentence):
    """LIBERO's "Pick the milk..." of a file is "pick up the milk..." to a policy."""
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [replace(episode(), instruction='Pick the milk')], layout)
    assert next(read_episodes(path)).instruction == 'Pick the milk'
    with h5py.File(path, 'r+') as file:
        file['data'].attrs['bddl_file_name'] = bddl
    assert next(read_episodes(path)).instruction == sentence


def test_parts_of_a_recording_under_way_are_not_demonstrations(tmp_path):
    write_hdf5(tmp_path / 'pick' / '00001.hdf5', [episode()])
    with pytest.raises(DatasetError, match='no demonstrations'):
        demonstration_files(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()])
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DatasetError, match=r'pick_demo\.hdf5 is no complete'):
        list(read_episodes(path))


@pytest.mark.parametrize('key, value, message', [
    ('actions', np.zeros((12, 6)), 'expected actions'),
    ('actions', np.full((12, 7), np.nan), 'NaN'),
    ('actions', np.zeros((0, 7)), 'no steps'),
    ('actions', None, 'no actions'),
    ('dones', np.zeros(0, np.uint8), r'expected dones of shape \(12\), got \(0,\)'),
    ('robot_states', np.zeros(9), r'expected robot_states of shape \(12, 9\), got \(9,\)'),
    ('obs/agentview_rgb', np.zeros((12, 64), np.uint8), r'\(12, any, any, 3\), got \(12, 64\)'),
    ('obs/agentview_rgb', np.zeros((11, 64, 64, 3), np.uint8), 'expected obs/agentview_rgb')])
def test_arrays_that_do_not_belong_together_are_refused(tmp_path, key, value, message):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()])
    with h5py.File(path, 'r+') as file:
        del file['data/demo_0'][key]
        if value is not None:
            file['data/demo_0'][key] = value
    with pytest.raises(DatasetError, match=f'pick.*demo_0: .*{message}.*record the demon'):
        list(read_episodes(path))


@pytest.mark.parametrize('failed', [True, False])
def test_a_demonstration_without_steps_is_named_where_its_frames_are_not_read(tmp_path, failed):
    """Pins a bug: the image tokenizer's training looked for its last step: IndexError."""
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()])
    with h5py.File(path, 'r+') as file:
        for key, empty in (('actions', np.zeros((0, 7))), ('dones', np.zeros(0, np.uint8))):
            del file['data/demo_0'][key]
            file['data/demo_0'][key] = empty
    with pytest.raises(DatasetError, match='demo_0: it has no steps; record the demon'):
        episode_actions(path, failed=failed)


@pytest.mark.parametrize('text, message', [
    ('[1]', r"a JSON object as problem_info, got '\[1\]'"),
    ('{', 'problem_info is no JSON'),
    (json.dumps({'language_instruction': 3}), 'text as language_instruction, got 3'),
    (json.dumps({'language_instruction': ['a', 3]}), 'text as language_instruction'),
    (json.dumps({'language_instruction': ' '}), 'no language_instruction'),
    (json.dumps({'problem_name': 3}), 'no language_instruction')])
def test_a_demonstration_that_does_not_say_its_task_is_named(tmp_path, text, message):
    path = tmp_path / 'pick_demo.hdf5'
    write_hdf5(path, [episode()])
    with h5py.File(path, 'r+') as file:
        file['data/demo_0'].attrs['problem_info'] = text
    with pytest.raises(DatasetError, match=rf'pick_demo\.hdf5, demo_0: .*{message}.*delete it'):
        list(read_episodes(path))


def test_an_empty_file_is_refused(tmp_path):
    write_hdf5(tmp_path / 'pick_demo.hdf5', [])
    with pytest.raises(DatasetError, match='holds no demonstration'):
        list(read_episodes(tmp_path / 'pick_demo.hdf5'))

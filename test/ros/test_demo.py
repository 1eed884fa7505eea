# SPDX-License-Identifier: Apache-2.0
"""`make demo` end to end: what it leaves behind, and what it says when it cannot."""

import contextlib
import json
from pathlib import Path
import signal
import subprocess
import sys

from ament_index_python.packages import get_package_prefix
from builtin_interfaces.msg import Time
import cv2
import numpy as np
from processes import programs_in
import pytest
from std_msgs.msg import Header

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.inference.scripted_backends import replay_backend
from worldvla_ros.msg import Episode
from worldvla_sim.ros import demo as demo_program
from worldvla_sim.ros.recorder import EpisodeRecording
from worldvla_sim.tasks import load_task

STEPS, TIMEOUT = 12, 200
KEPT = {'libero_goal_task0_init0_failure_abcdef.mp4', 'mine.mp4'}  # not of a demo


@pytest.fixture
def command(tmp_path):
    """Command line of the program; it writes to the folder `out` of the test."""
    program = Path(get_package_prefix('worldvla_ros')) / 'lib' / 'worldvla_ros' / 'demo'
    return [str(program), '--tasks', '4', '--out', str(tmp_path / 'out')]


@pytest.fixture
def demo(domain_id, command, tmp_path):
    """Run the program; the completed process and the folder it writes to."""
    def demo(*arguments):
        return subprocess.run([*command, *arguments], capture_output=True, text=True,
                              timeout=TIMEOUT, check=False), tmp_path / 'out'
    yield demo
    assert not programs_in(domain_id), 'no process is left'


def test_the_demo_leaves_a_video_a_contact_sheet_chunks_and_a_table(demo):
    done, out = demo('--max-steps', str(STEPS))
    print(done.stdout, done.stderr, file=sys.stderr)
    assert done.returncode == 0
    assert 'pick up the ketchup' in done.stdout and 'worldvla-mini' in done.stdout
    assert 'success 0 of 1, errors 0' in done.stdout and 'Traceback' not in done.stderr

    row, = json.loads((out / 'episodes.json').read_text())
    assert (row['suite'], row['task'], row['init_state']) == ('libero_object', 4, 0)
    assert (row['steps'], row['success'], row['error']) == (STEPS, False, None)
    assert row['control_rate_hz'] > 0 and row['latency_p99_ms'] >= row['latency_p50_ms'] > 0

    video = cv2.VideoCapture(str(out / 'libero_object_task4_init0.mp4'))
    frames = [video.read()[1] for _ in range(int(video.get(cv2.CAP_PROP_FRAME_COUNT)))]
    assert len(frames) == STEPS + 1 and video.get(cv2.CAP_PROP_FPS) == pytest.approx(20)
    assert frames[0].std() > 20 and not np.array_equal(frames[0], frames[-1])
    sheet = cv2.imread(str(out / 'contact_sheet.png'))
    assert sheet is not None and sheet.std() > 20

    backend = replay_backend(out / 'libero_object_task4_init0_chunks.npz')
    info = backend.start()
    backend.submit(1, Observation((Frame(frames[0], 1),), 'replay'))
    result, = iter(backend.poll())
    assert result.chunk.actions.shape == (info.horizon, 7)
    assert f'{row["chunks"]} chunks' in info.description
    backend.stop()


class StubClient:
    """Stands for the client: episodes that end as their initial state says."""

    policy = 'stub'

    def __init__(self, processes):
        pass

    def wait_until_ready(self):
        """Nothing is started."""

    def play(self, suite, task, init_state, on_step):
        """0: played to its end; 1: stalls; 2: Ctrl-C."""
        if init_state == 1:
            raise WorldVLAError('no control step for 60 s')
        if init_state == 2:
            raise KeyboardInterrupt
        record = EpisodeRecording('pick up the milk')
        record.frames = {1: np.zeros((64, 64, 3), np.uint8)}
        record.finish(Episode(state=Episode.STATE_TIMEOUT, suite=suite, task=task, step=3,
                              header=Header(stamp=Time(nanosec=1)), assets='builtin'))
        return record


@pytest.fixture
def stub_demo(monkeypatch, tmp_path_factory, domain_id):
    """Run the program without nodes in a folder with the results of an earlier run."""
    monkeypatch.setattr(demo_program, 'ProcessGroup',
                        lambda graph, logs: contextlib.nullcontext())
    monkeypatch.setattr(demo_program, 'EpisodeClient', StubClient)
    monkeypatch.setattr(demo_program, 'end_as_on_ctrl_c', lambda: None)
    out = tmp_path_factory.mktemp('out')
    for name in ('episodes.json', 'contact_sheet.png', 'libero_goal_task0_init0.mp4',
                 'libero_goal_task0_init0_chunks.npz', *KEPT):
        (out / name).touch()

    def run(states):
        monkeypatch.setattr('sys.argv', ['demo', '--out', str(out), '--tasks', '7',
                                         '--init-states', states])
        return demo_program.main(), out
    return run


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_a_stalled_episode_is_an_error_and_the_others_are_told(stub_demo, capsys):
    """Pins a bug: the first stall ended the demo and lost what had been played before."""
    status, out = stub_demo('0,1,3')
    assert status == 1
    rows = json.loads((out / 'episodes.json').read_text())
    assert [(row['init_state'], row['error']) for row in rows] == [
        (0, None), (1, 'no control step for 60 s'), (0, None)]
    assert rows[1]['outcome'] == 'ERROR'
    assert rows[1]['instruction'] == load_task('libero_object', 7).instruction
    shown = capsys.readouterr().out
    assert 'success 0 of 2, errors 1 (libero_object, builtin assets' in shown
    assert 'error in task 7, initial state 1: no control step' in shown
    assert names_in(out) == KEPT | {
        'episodes.json', 'contact_sheet.png', 'libero_object_task7_init0.mp4',
        'libero_object_task7_init3.mp4'}


def test_an_episode_without_chunks_has_no_latency(stub_demo, capsys):
    """Pins a bug: episodes.json had NaN there, which is no JSON."""
    _, out = stub_demo('0')
    row, = json.loads((out / 'episodes.json').read_text(), parse_constant=pytest.fail)
    assert row['latency_p50_ms'] is row['latency_p99_ms'] is None
    assert '      -       -  pick up the milk' in capsys.readouterr().out


def test_ctrl_c_shows_what_was_played_and_leaves_nothing_of_an_earlier_run(stub_demo, capsys):
    """Pins a bug: older results stood in the folder as if they were of the interrupted run."""
    status, out = stub_demo('0,2')
    assert status == 130
    said = capsys.readouterr()
    assert 'success 0 of 1, errors 0' in said.out and 'interrupted' in said.err
    assert 'libero_goal_task0_init0.mp4' not in names_in(out)
    status, out = stub_demo('2')
    assert status == 130 and names_in(out) == KEPT


def test_what_does_not_exist_is_refused_before_anything_starts(stub_demo, capsys):
    """Pins a bug: the results of the last run were gone by then."""
    status, out = stub_demo('50')
    assert status == 1
    assert 'initial states 0 to 49' in capsys.readouterr().err
    assert 'episodes.json' in names_in(out)


def test_a_checkpoint_that_does_not_exist_fails_in_one_clear_line(demo):
    done, out = demo('--checkpoint', '/nowhere/at/all')
    assert done.returncode == 1
    what, where = done.stderr.splitlines()
    assert what.startswith('the demo failed: ') and '/nowhere/at/all' in what
    assert where == f'logs: {out}/*.log'


@pytest.mark.parametrize('number, status', [
    (signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_nothing_is_left_when_the_demo_is_ended_by(number, status, command, domain_id, wait_for):
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        wait_for(lambda: len(programs_in(domain_id)) == 4, TIMEOUT)  # worker and bridge, too
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == status and 'Traceback' not in errors
    wait_for(lambda: not programs_in(domain_id))

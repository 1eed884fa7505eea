# SPDX-License-Identifier: Apache-2.0
"""`make demo` end to end: what it leaves behind, and what it says when it cannot."""

import json
from pathlib import Path
import signal
import subprocess
import sys

from ament_index_python.packages import get_package_prefix
import cv2
import numpy as np
from processes import programs_in
import pytest

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.inference.scripted_backends import replay_backend

STEPS, TIMEOUT = 12, 200


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

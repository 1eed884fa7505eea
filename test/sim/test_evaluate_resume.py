# SPDX-License-Identifier: Apache-2.0
"""What keeps a result file of one kind: one writer, one number format, options that count."""

from dataclasses import asdict, replace
import subprocess
import sys

import pytest

from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint
from worldvla_ros.policy.settings import PolicySettings
from worldvla_sim import evaluate, report
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.policies import also_reads
from worldvla_sim.results import Results
from worldvla_sim.runner import EvaluationSettings

HOLD = ['--policy', 'hold', '--suite', 'libero_object', '--assets', 'builtin', '--max-steps', '1']
BFLOAT16, FLOAT32 = 'mini, bfloat16 on cpu', 'mini, float32 on cpu'
SETTINGS = EvaluationSettings('out/mini', 'libero_object', 'builtin', checkpoint='mini, sha256:1')
HOLDING = """
import sys, time
from pathlib import Path
from worldvla_sim.results import alone_with
with alone_with(Path(sys.argv[1])):
    print('in', flush=True)
    time.sleep(60)
"""


def record(state=0, error=None, policy=BFLOAT16):
    return EpisodeRecord('libero_object', 0, 'do it', state, error is None, 100, error, 'builtin',
                         policy=policy)


def test_a_second_evaluation_of_one_file_is_refused_as_long_as_the_first_runs(tmp_path, capsys):
    """Pins a bug: each wrote its own episodes alone, and the file said that it was complete."""
    out = tmp_path / 'out.json'
    with subprocess.Popen([sys.executable, '-c', HOLDING, str(out)], stdout=subprocess.PIPE,
                          text=True) as first:
        assert first.stdout.readline() == 'in\n'
        command = [*HOLD, '--tasks', '1', '--init-states', '0', '--json', str(out)]
        assert evaluate.main(command) == 2
        assert f'another program writes {out} (process {first.pid} on' in capsys.readouterr().err
        assert not out.exists()
        first.kill()
    assert evaluate.main(command) == 0


def test_episodes_of_two_number_formats_make_no_common_rate():
    """Pins a bug: they were pooled on a machine without AMX, and refused only by `promote`."""
    evaluate._require_same_policy([record(policy=FLOAT32, error='broken')], record(1))
    evaluate._require_same_policy([record(policy=FLOAT32)], record(1, error='broken'))
    with pytest.raises(ConfigError, match='float32 on cpu, and this machine plays mini, bfloat16'):
        evaluate._require_same_policy([record(policy=FLOAT32)], record(1))


def test_a_checkpoint_is_the_same_however_its_folder_is_written():
    """Pins a bug: `mini/`, by the shell's completion, could not be resumed and was another row."""
    other = replace(SETTINGS, policy='./out/mini/')
    assert not evaluate._differences(Results(asdict(SETTINGS)), other)
    run, = report.group_runs([Results(asdict(SETTINGS), [record()]),
                              Results(asdict(other), [record(1)])])
    assert len(run.records) == 2


def test_a_file_of_errors_alone_binds_nobody(tmp_path):
    """Pins a bug: after a start with a wrong option the file was of no use to the right one."""
    out = tmp_path / 'out.json'
    Results({**asdict(SETTINGS), 'device': 'cuda'}, [record(error='no such device')]).save(out)
    hold = [*HOLD, '--tasks', '1', '--init-states', '0', '--json', str(out), '--resume']
    assert evaluate.main(hold) == 0
    played, = Results.load(out).records
    assert (played.task, played.error) == (1, None)


@pytest.mark.parametrize(('options', 'message'), [
    (['--device', 'cuda'], '--device is for a checkpoint'),
    (['--videos-of', 'all'], '--videos FOLDER'),
    (['--resume'], '--json'),
    (['--policy', 'worldvla-mini', '--image-size', '256'], 'its own size'),
    (['--policy', 'worldvla-mini', '--device', 'tpu'], "device is 'tpu'"),
    (['--report', '/proc/new/page.html'], '/proc/new/page.html')])
def test_what_would_change_nothing_or_spoil_all_is_refused_before_the_first_episode(
        options, message, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, 'evaluate', lambda *_, **__: pytest.fail('it began'))
    assert evaluate.main([*HOLD, *options]) == 2
    assert message in capsys.readouterr().err


def test_official_pictures_are_of_the_whole_robot_and_smooth_edges(monkeypatch):
    """Pins a bug: they were of neither, by default, and stood beside published rates as if."""
    def checked(kind, *options):
        monkeypatch.setattr(evaluate, 'resolve_assets', lambda _: type('_', (), {'kind': kind}))
        settings, _ = evaluate._checked(evaluate._parser().parse_args(
            ['--suite', 'libero_object', *options]))
        return settings.robot, settings.msaa
    assert checked('official') == ('full', 4)
    assert checked('builtin') == ('light', 0)
    assert checked('official', '--robot', 'light', '--msaa', '0') == ('light', 0)


def test_a_record_says_what_a_checkpoint_reads_beside_its_pictures(tmp_path):
    """Pins a bug: a policy that reads the arm's state stood in the report as if it saw alone."""
    random = PolicySettings.load(ensure_random_checkpoint() / 'policy.json')
    assert also_reads(random) == ''
    zeros, ones = (0.0,) * 7, (1.0,) * 7
    both = replace(random, reads_wrist=True, state_minimum=zeros, state_maximum=ones)
    assert also_reads(both) == 'wrist camera + arm state'
    page = report.render_report([Results(asdict(SETTINGS), [
        replace(record(), image_size=192, also_reads='arm state')])], tmp_path)
    assert '192 px + arm state' in page

# SPDX-License-Identifier: Apache-2.0
"""The evaluation writes one record per episode, keeps errors apart, and survives interruption."""

from dataclasses import asdict, replace
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

import pytest

from worldvla_ros.errors import ConfigError, SimulationError
from worldvla_ros.policy.named_checkpoints import NAMES, locate_checkpoint
from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint
from worldvla_sim import collect, evaluate, policies
from worldvla_sim.assets.pack import PACK_VERSION
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.results import Results, describe_run, summary_table, wilson_interval
from worldvla_sim.runner import EpisodeJob, EvaluationSettings, make_jobs

ROOT = Path(__file__).resolve().parents[2]
HOLD = ['--policy', 'hold', '--suite', 'libero_object', '--tasks', '1', '--assets', 'builtin']


def record(task=0, state=0, success=True, error=None):
    return EpisodeRecord('libero_object', task, 'do it', state, success, 100, error, 'builtin')


def test_wilson_interval_has_the_textbook_values():
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson_interval(15, 20) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_errors_are_counted_apart_from_failures():
    table = summary_table([record(), record(state=1, success=False),
                           record(state=2, success=False, error='broken')])
    row = table.splitlines()[1].split()
    assert row[:2] == ['0', '1/2']
    assert '50.0%' in row
    assert row[row.index('do') - 1] == '1'


def test_results_are_read_back_as_they_were_written(tmp_path):
    written = Results({'policy': 'expert'}, [record(), record(state=1, error='x')], True)
    out = tmp_path / 'new' / 'folder' / 'out.json'
    written.save(out)
    assert Results.load(out) == written
    assert [path.name for path in out.parent.iterdir()] == ['out.json']


def test_the_same_command_again_does_not_empty_its_result_file(tmp_path, capsys):
    """A run killed after 90 episodes was once left with one by the most natural thing to do."""
    out = tmp_path / 'out.json'
    Results({'policy': 'hold'}, [record(), record(state=1)]).save(out)
    before = out.read_bytes()
    assert evaluate.main([*HOLD, '--init-states', '0', '--json', str(out)]) == 2
    assert f'{out} exists with 2 episodes; add --resume to go on' in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize('content', [
    '', '{}', '[]', '{"records": [{}]}', '{"records": 1}', '{"records": [1]}',
    '{"records": [], "settings": null}',
    '{"records": [], "settings": {}, "complete": true, "runs": [1]}'])
def test_foreign_result_files_are_refused(tmp_path, content):
    (tmp_path / 'out.json').write_text(content)
    with pytest.raises(ConfigError, match='not a result file'):
        Results.load(tmp_path / 'out.json')


def test_command_plays_records_resumes_and_refuses_other_settings(tmp_path, capsys):
    out = tmp_path / 'out.json'
    expert = ['--policy', 'expert', '--suite', 'libero_object', '--tasks', '1',
              '--assets', 'builtin', '--json', str(out)]
    assert evaluate.main([*expert, '--init-states', '0']) == 0
    content = json.loads(out.read_text())
    assert content['complete']
    assert content['settings']['policy'] == 'expert'
    assert content['records'] == [{
        'suite': 'libero_object', 'task': 1, 'init_state': 0, 'success': True, 'error': None,
        'instruction': 'pick up the cream cheese and place it in the basket',
        'assets': 'builtin', 'steps': content['records'][0]['steps'],
        'duration': content['records'][0]['duration'], 'policy': 'expert', 'robot': 'light',
        'image_size': 0, 'also_reads': '', 'over': 'process', 'mode': 'lockstep', 'video': None,
        'scatter': 0.0}]
    run, = content['runs']
    assert run['command'] and run['machine']
    assert 0 < content['records'][0]['steps'] < 280
    shown = capsys.readouterr().out
    assert '1/1' in shown
    assert ('libero_object; expert; builtin assets, light robot, no pictures; lockstep over '
            'process') in shown

    assert evaluate.main([*expert, '--init-states', '0', '--resume']) == 0
    assert json.loads(out.read_text()) == content, 'nothing was left to play'
    assert evaluate.main([*HOLD, '--init-states', '0', '--json', str(out), '--resume']) == 2
    assert 'other settings' in capsys.readouterr().err


def test_a_checkpoint_that_changed_is_not_resumed_but_an_older_file_is():
    settings = EvaluationSettings('folder', 'libero_object', 'builtin',
                                  checkpoint='mini, sha256:1')
    earlier = Results(asdict(settings))
    del earlier.settings['device']  # written before there was such a setting
    assert not evaluate._differences(earlier, settings)
    changed, = evaluate._differences(earlier, replace(settings, checkpoint='mini, sha256:2'))
    assert re.search('sha256:1.* -> .*sha256:2', changed)


def test_results_of_another_asset_pack_are_not_resumed_and_older_files_are_of_the_first(
        tmp_path, monkeypatch, capsys):
    """Pins a bug: what the assets looked like was promised to be in the results, and was not."""
    out = tmp_path / 'out.json'
    hold = [*HOLD, '--max-steps', '1', '--init-states', '0', '--json', str(out), '--resume']
    assert evaluate.main(hold) == 0
    content = json.loads(out.read_text())
    assert content['settings'].pop('pack_version') == PACK_VERSION
    out.write_text(json.dumps(content))
    assert Results.load(out).settings['pack_version'] == '1.0'
    assert evaluate.main(hold) == 0
    monkeypatch.setattr(evaluate, 'PACK_VERSION', '1.1')
    assert evaluate.main(hold) == 2
    assert "pack_version: '1.0' -> '1.1'" in capsys.readouterr().err


@pytest.mark.parametrize('suite', ['libero_goal', 'libero_object'])
def test_results_from_before_each_state_had_its_fixtures_are_resumed_where_there_are_none(
        tmp_path, suite):
    path = tmp_path / 'result.json'
    settings = EvaluationSettings('hold', suite, 'builtin', pack_version='1.0')
    Results({name: value for name, value in asdict(settings).items()
             if name != 'fixtures'}).save(path)
    different = evaluate._differences(Results.load(path), settings)
    if suite == 'libero_object':
        assert not different
    else:
        assert 'fixtures' in different[0] and 'seed alone' in different[0]


@pytest.mark.parametrize('file', ['policy.json', 'config.json', 'tokenizer.json',
                                  'image_tokenizer/model.safetensors', 'model.safetensors'])
def test_a_checkpoints_name_follows_every_file_that_its_policy_is_made_of(tmp_path, file):
    folder = ensure_random_checkpoint(tmp_path)
    before = policies.checkpoint_name(str(folder))
    assert policies.checkpoint_name(str(folder)) == before
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content.replace(b'{', b'{ ', 1))
    assert policies.checkpoint_name(str(folder)) != before
    (folder / file).write_bytes(content)
    assert policies.checkpoint_name(str(folder)) == before


def test_a_result_file_names_every_run_that_played_some_of_it(tmp_path, monkeypatch):
    out = tmp_path / 'out.json'
    commits = iter(['first', 'second', 'idle'])
    monkeypatch.setattr(evaluate, 'describe_run', lambda: {'commit': next(commits)})
    hold = [*HOLD, '--max-steps', '1', '--json', str(out), '--resume']
    for states in ('0', '0-1', '0-1'):
        assert evaluate.main([*hold, '--init-states', states]) == 0
    assert Results.load(out).runs == [{'commit': 'first'}, {'commit': 'second'}]


def test_other_episodes_that_are_there_do_not_make_an_evaluation_complete(tmp_path, monkeypatch):
    out = tmp_path / 'out.json'
    hold = [*HOLD, '--max-steps', '1', '--json', str(out), '--resume']
    assert evaluate.main([*hold, '--init-states', '0-1']) == 0

    def interrupted(self, jobs):
        raise KeyboardInterrupt
        yield
    monkeypatch.setattr(evaluate.WorkerPool, 'run', interrupted)
    assert evaluate.main([*hold, '--init-states', '2-3']) == 130
    assert len(Results.load(out).records) == 2 and not Results.load(out).complete


def test_an_error_of_an_episode_that_is_not_played_again_is_kept_and_told(tmp_path, capsys):
    """Pins a bug: a resumed command dropped errors of other episodes and said it was complete."""
    out = tmp_path / 'out.json'
    hold = [*HOLD, '--max-steps', '1', '--json', str(out), '--resume']
    assert evaluate.main([*hold, '--init-states', '0-1']) == 0
    results = Results.load(out)
    results.records = [replace(one, error='broken') for one in results.records]
    results.save(out)
    capsys.readouterr()
    assert evaluate.main([*hold, '--init-states', '1-2']) == 1
    assert 'error in task 1, initial state 0: broken' in capsys.readouterr().err
    results = Results.load(out)
    assert [(one.init_state, one.error) for one in results.records] == [
        (0, 'broken'), (1, None), (2, None)]
    assert not results.complete
    assert evaluate.main([*hold, '--init-states', '0']) == 0
    assert Results.load(out).complete


def test_an_error_stays_until_its_episode_was_played_again(tmp_path, monkeypatch):
    out = tmp_path / 'out.json'
    hold = [*HOLD, '--max-steps', '1', '--init-states', '0', '--json', str(out), '--resume']
    assert evaluate.main(hold) == 0
    results = Results.load(out)
    results.records = [replace(results.records[0], error='broken')]
    results.save(out)

    def interrupted(self, jobs):
        assert jobs == [EpisodeJob(1, 0)]
        raise KeyboardInterrupt
        yield
    monkeypatch.setattr(evaluate.WorkerPool, 'run', interrupted)
    assert evaluate.main(hold) == 130
    left = Results.load(out)
    assert [one.error for one in left.records] == ['broken'] and not left.complete


def test_workers_get_absolute_paths_and_the_file_keeps_what_was_given(
        checkpoint, tmp_path, monkeypatch):
    """Pins a bug: a worker of Ray, in a folder of its own, looked for relative paths there."""
    monkeypatch.chdir(tmp_path)
    made = []

    def make_runner(settings, options):
        made.append((settings.policy, options.videos.folder))
        raise ConfigError('enough')

    class Pool:
        def __init__(self, make_handler, workers):
            self.make_handler = make_handler

        def run(self, jobs):
            with pytest.raises(ConfigError):
                self.make_handler()
            yield from ()
    monkeypatch.setattr(evaluate, 'make_runner', make_runner)
    monkeypatch.setattr(evaluate, 'WorkerPool', Pool)
    monkeypatch.setattr(evaluate, 'checkpoint_name', lambda policy: f'{policy}, sha256:0')
    assert evaluate.main(['--policy', 'checkpoint', '--suite', 'libero_object', '--tasks', '1',
                          '--assets', 'builtin', '--init-states', '0', '--videos', 'videos',
                          '--json', 'out.json']) == 0
    assert made == [(checkpoint, tmp_path / 'videos')]
    assert Results.load(tmp_path / 'out.json').settings['policy'] == 'checkpoint'
    assert policies.absolute_policy('expert') == 'expert'


def test_a_folder_called_like_a_shipped_checkpoint_is_not_taken_for_it(tmp_path, monkeypatch):
    """Pins a bug: the evaluation in process played another checkpoint than that over ROS."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAMES[0]).mkdir()
    assert policies.checkpoint_folder(NAMES[0]) == Path(locate_checkpoint(NAMES[0]))
    assert policies.checkpoint_folder(f'./{NAMES[0]}').samefile(tmp_path / NAMES[0])


def test_an_error_takes_no_part_in_the_conditions_of_a_table():
    """Pins a bug: its record says what was asked for, in other words than the episodes that ran.

    One error made '0 px' and a second name of the checkpoint of the line below the table.
    """
    ran = replace(record(), policy='mini, sha256:1', image_size=128, robot='light')
    error = replace(record(state=1, error='x'), policy='mini, weights sha256:1', robot='full')
    assert summary_table([ran, error]).splitlines()[-1] == (
        'libero_object; mini, sha256:1; builtin assets, light robot, 128 px; lockstep over '
        'process')


@pytest.mark.parametrize('seed', ['-1', '4294967296', 'x'])
def test_a_seed_that_no_simulator_takes_is_refused_before_the_first_episode(seed, capsys):
    """Pins a bug: --seed -1 made an error of every episode."""
    with pytest.raises(SystemExit) as ended:
        evaluate.main([*HOLD, f'--seed={seed}'])
    assert ended.value.code == 2
    assert f"--seed: expected a whole number from 0 to 4294967295, got '{seed}'" in (
        capsys.readouterr().err)


def test_the_commit_of_a_repository_that_only_holds_the_installation_is_not_ours(
        tmp_path, monkeypatch):
    """Pins a bug: it stood in every result of a virtual environment within one's own project."""
    def git(*arguments):
        subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b',
                        *arguments], check=True, capture_output=True)
    git('init')
    git('commit', '--allow-empty', '-m', 'theirs')
    monkeypatch.setattr('worldvla_sim.results.__file__', str(tmp_path / 'results.py'))
    assert describe_run()['commit'] == ''


def test_a_run_is_described_where_there_is_no_git(monkeypatch):
    monkeypatch.setenv('PATH', '/nowhere')
    assert describe_run()['commit'] == ''


def test_a_result_file_of_one_run_is_still_read(tmp_path):
    out = tmp_path / 'out.json'
    Results({'policy': 'hold'}, [record()]).save(out)
    content = json.loads(out.read_text())
    for run, expected in (({'commit': 'old'}, [{'commit': 'old'}]), ({}, [])):
        del content['runs']
        out.write_text(json.dumps({**content, 'run': run}))
        assert Results.load(out).runs == expected
        Results.load(out).save(out)
        content = json.loads(out.read_text())
        assert content['runs'] == expected and 'run' not in content


def test_failures_become_videos_and_the_report_shows_them(tmp_path):
    videos, page = tmp_path / 'videos', tmp_path / 'report.html'
    assert evaluate.main([*HOLD, '--init-states', '0', '--max-steps', '3', '--image-size', '64',
                          '--videos', str(videos), '--report', str(page)]) == 0
    video, = videos.iterdir()
    assert re.fullmatch(r'libero_object_task1_init0_failure_[0-9a-f]{6}\.mp4', video.name)
    assert f'videos/{video.name}' in page.read_text()
    assert evaluate.main([*HOLD, '--init-states', '0', '--max-steps', '4', '--image-size', '64',
                          '--videos', str(videos)]) == 0
    assert video.exists() and len(list(videos.iterdir())) == 2, 'another run leaves it alone'


def test_an_episode_that_cannot_run_is_an_error_and_the_command_says_so(tmp_path, monkeypatch,
                                                                       capsys):
    out = tmp_path / 'out.json'
    monkeypatch.setenv('MUJOCO_GL', 'bogus')
    assert evaluate.main([*HOLD, '--init-states', '0', '--json', str(out)]) == 1
    episode, = json.loads(out.read_text())['records']
    assert 'bogus' in episode['error']
    assert not episode['success']
    assert '0/0' in capsys.readouterr().out


@pytest.mark.parametrize(('options', 'message'), [
    (['--suite', 'libero'], 'libero_spatial'),
    (['--suite', 'libero_object', '--tasks', '12'], 'has no task 12'),
    (['--suite', 'libero_object', '--init-states', '49-50'], '0 to 49'),
    (['--suite', 'libero_object', '--policy', 'nobody'], 'expert'),
    (['--suite', 'libero_object', '--mode', 'realtime'], '--over ros'),
    (['--suite', 'libero_object', '--over', 'ros', '--policy', 'hold'], 'not \'hold\''),
    (['--suite', 'libero_object', '--over', 'ros', '--mode', 'realtime'], 'lockstep only'),
    (['--suite', 'libero_object', '--videos', '/proc/videos'], '/proc/videos'),
    (['--suite', 'libero_object', '--json', '/proc/new/out.json'], '/proc/new/out.json: No')])
def test_bad_input_ends_with_status_2_and_says_what_there_is(options, message, capsys):
    assert evaluate.main(['--assets', 'builtin', *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('command', [evaluate, collect])
def test_help_names_every_policy_that_has_a_name(command, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')  # argparse would break a name at its hyphen
    with pytest.raises(SystemExit):
        command.main(['--help'])
    shown = capsys.readouterr().out
    assert [name for name in (*policies.POLICIES, *NAMES) if name not in shown] == []


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interruption_leaves_valid_results_and_no_process(number, tmp_path):
    out = tmp_path / 'out.json'
    command = [sys.executable, '-m', 'worldvla_sim.evaluate', *HOLD, '--max-steps', '5',
               '--init-states', '0-49', '--json', str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                               env=os.environ | {'PYTHONPATH': f'{ROOT}:{ROOT / "sim"}'})
    for _ in range(2400):
        if out.exists() and json.loads(out.read_text())['records']:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert '--resume continues' in complaint
    assert 'Traceback' not in complaint
    content = json.loads(out.read_text())
    assert not content['complete']
    assert 1 <= len(content['records']) < 50


def test_jobs_cover_tasks_times_states_in_order():
    jobs = make_jobs('libero_goal', [2, 4], [0, 7])
    assert [(job.task, job.init_state) for job in jobs] == [(2, 0), (2, 7), (4, 0), (4, 7)]
    assert len(make_jobs('libero_goal', None, [0])) == 10
    with pytest.raises(SimulationError, match='has no task'):
        make_jobs('libero_goal', [10], [0])

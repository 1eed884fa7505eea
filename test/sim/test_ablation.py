# SPDX-License-Identifier: Apache-2.0
"""The ablation: a plan per row, rows that resume and fail alone, tables beside the paper's."""

import contextlib
from dataclasses import replace
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from ablation_rows import finish, plan_file, play
import pytest
from training_runs import tiny_config

from worldvla_ros.config import flatten
from worldvla_ros.errors import ConfigError
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.store import TokenStore
from worldvla_sim import libero_setup
from worldvla_sim.ablation import __main__ as command
from worldvla_sim.ablation import run
from worldvla_sim.ablation.paper import PAPER
from worldvla_sim.ablation.plan import load_plan, tokens_per_step
from worldvla_sim.ablation.report import lines_of, markdown_table, text_table
from worldvla_sim.results import wilson_interval

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / 'config' / 'train' / 'ablation.yaml'


def test_the_shipped_plan_has_the_papers_rows():
    plan = load_plan(SHIPPED)
    rows = {row.name: flatten(row.final) for row in plan.rows}
    # With two frames, the table of histories repeats rows of the first table.
    repeated = {'history_2': 'chunk_masked', 'history_2_single': 'action'}
    shipped = {row.paper for row in plan.rows}
    assert {repeated.get(name, name) for name in PAPER} == shipped - {None}
    assert all(PAPER[name]['goal'] == PAPER[other]['goal'] for name, other in repeated.items())
    assert {(row.paper, rows[row.name]['data.horizon'], rows[row.name]['data.history_length'])
            for row in plan.rows if row.paper and row.paper.startswith('history')} == {
        ('history_1', 5, 1), ('history_4', 5, 4), ('history_1_single', 1, 1),
        ('history_4_single', 1, 4)}
    assert rows['action']['data.horizon'] == 1 and rows['action']['data.branches'] == ('action',)
    assert [name for name, row in rows.items() if not row['data.chunk_mask']] == ['chunk_unmasked']
    assert rows['video']['data.branches'] == ('action', 'video')
    pretraining = next(row for row in plan.rows if row.name == 'world_pretraining')
    first, second = pretraining.stages
    assert first.data.branches == ('world',)
    assert second.model.init_from == f'{first.run.output}/final'
    budgets = {(row['run.steps'], row['data.batch_size']) for row in rows.values()}
    assert len(budgets) == 1, 'every row is trained on the same budget'


def test_the_papers_averages_are_those_of_its_suites():
    for numbers in PAPER.values():
        if 'average' in numbers:
            suites = [value for name, value in numbers.items() if name != 'average']
            assert sum(suites) / 4 == pytest.approx(numbers['average'], abs=0.06)


def test_scale_sizes_every_row_and_its_intervals(tmp_path):
    plan = load_plan(plan_file(tmp_path, scale={'steps': 2.5, 'batch': 0.5}))
    assert [[stage.run.steps for stage in row.stages] for row in plan.rows] == [
        [10], [10], [5, 10]]
    assert plan.rows[0].final.data.batch_size == 2
    assert plan.rows[0].final.optimizer.warmup_steps == 250


@pytest.mark.parametrize(('rows', 'message'), [
    ({'a': {'set': {'data.horizons': 1}}}, "row a: unknown key 'data.horizons'"),
    ({'a': {'sett': {}}}, "unknown key 'sett'"),
    ({'a': {'paper': 'nothing'}}, 'paper must be one of'),
    ({'a': {'set': {'run.output': 'x'}}}, 'follows from the row'),
    ({'a': {'pretrain': {}, 'set': {'model.init_from': 'x'}}}, 'follows from the row'),
    ({'a': {'set': {'run.steps': 'many'}}}, 'must be int'),
    ({1: {}}, 'the name of row 1 is no text'), ({}, 'give some'), ({'a': 3}, 'must be a section')])
def test_a_wrong_plan_is_refused(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        load_plan(plan_file(tmp_path, rows=rows))


def test_a_row_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(ConfigError, match="no row 'foo'; the rows are plain, short, two"):
        load_plan(plan_file(tmp_path), ['plain', 'foo'])


@pytest.mark.parametrize(('branches', 'rounds', 'stride', 'wrist'), [
    (('action',), 1, 1, False), (('action',), 1, 1, True), (('video',), 2, 3, False),
    (('world',), 2, 1, False), (('world',), 1, 5, False)])
def test_estimated_tokens_are_those_of_a_batch(tmp_path, branches, rounds, stride, wrist):
    config = tiny_config(tmp_path, branches=branches, history_length=4, world_rounds=rounds,
                         world_stride=stride, wrist=wrist)
    table = build_experiment(config).train
    longest = max(len(table[index].ids) for index in range(len(table)))
    store = TokenStore.open(config.data.store)
    assert abs(tokens_per_step(config, store) / 4 - longest) <= 40  # the text
    both = replace(config, data=replace(config.data, branches=('action', 'video')))
    assert tokens_per_step(both, store) == sum(
        tokens_per_step(replace(config, data=replace(config.data, branches=(branch,))), store) / 2
        for branch in both.data.branches)


def test_one_row_fails_alone_and_a_second_call_does_only_what_is_missing(
        tmp_path, capsys, fake_processes):
    asked, failing = fake_processes
    failing.add(('worldvla_ros.training.train', 'short'))
    arguments = ['--config', str(plan_file(tmp_path))]
    assert command.main(arguments) == 1
    shown = capsys.readouterr().out
    assert 'short: not finished. out of memory' in shown
    assert asked.count(('worldvla_ros.training.train', 'two')) == 2
    assert shown.count('1/2') == 2

    asked.clear(), failing.clear()
    assert command.main(arguments) == 0
    assert asked == [('worldvla_ros.training.train', 'short'), ('worldvla_sim.evaluate', 'short')]
    assert 'out of memory' not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / 'ablation').iterdir()} == {
        'rows', 'table.txt', 'table.md', 'table.csv', 'table.png'}


def test_a_result_that_was_exported_before_the_last_step_is_trained_on(tmp_path, fake_processes):
    asked, _ = fake_processes
    file = plan_file(tmp_path)
    short = next(row for row in load_plan(file).rows if row.name == 'short').final.run
    finish(short.output, short.steps - 1)
    assert command.main(['--config', str(file)]) == 0
    assert ('worldvla_ros.training.train', 'short') in asked


def test_an_interrupted_ablation_stops_its_processes_and_blames_no_row(
        tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(run, '_show', interrupted)
    monkeypatch.setattr(run.Processes, 'run', lambda self, *_, **__: self.wait_for_stop())
    monkeypatch.setattr(run.Processes, 'wait_for_stop', wait_for_stop, raising=False)
    assert command.main(['--config', str(plan_file(tmp_path))]) == 130
    assert 'the same command goes on' in capsys.readouterr().err
    assert not list((tmp_path / 'ablation').rglob('error.txt'))


def commands_about(folder):
    """Command lines of the processes that name a folder."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(path.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
    return [line for line in found if str(folder) in line]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_ablation_that_is_ended_leaves_no_trainer(number, tmp_path):
    plan = plan_file(tmp_path, scale={'steps': 1e5})
    with subprocess.Popen(
            [sys.executable, '-m', 'worldvla_sim.ablation', '--config', str(plan), '--rows',
             'plain'], stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {'PYTHONPATH': f'{ROOT}:{ROOT / "sim"}'}) as process:
        deadline = time.monotonic() + 120
        while not any('training.train' in line for line in commands_about(tmp_path)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130 and 'the same command goes on' in complaint
    assert commands_about(tmp_path) == []


def wait_for_stop(processes):
    """Stand for a command that ends when it is stopped, with a failure."""
    deadline = time.monotonic() + 60
    while not processes.stopped and time.monotonic() < deadline:
        time.sleep(0.01)
    raise run.AblationError('ended with status -15')


def test_the_dry_run_counts_down(tmp_path, capsys, fake_processes):
    arguments = ['--config', str(plan_file(tmp_path, seconds_per_episode=60.0)), '--dry-run']
    assert command.main(arguments) == 0
    before = capsys.readouterr().out
    assert 'two: two; 2+4 steps, 0 min of training and 2 min of episodes left' in before
    assert 'about 3 min in 2 processes' in before
    assert not (tmp_path / 'ablation').exists()
    command.main(arguments[:-1])
    capsys.readouterr()
    assert command.main(arguments) == 0
    assert 'about 0 min' in capsys.readouterr().out


@pytest.mark.parametrize('flags', [[], ['--dry-run']])
def test_assets_that_are_not_there_are_missed_before_anything_is_trained(
        tmp_path, capsys, monkeypatch, fake_processes, flags):
    """Pins a bug: every row was trained before its evaluation looked for them."""
    monkeypatch.setattr(libero_setup, 'official_candidates', lambda _: [tmp_path / 'nowhere'])
    file = plan_file(tmp_path, evaluation={'suite': 'libero_object', 'tasks': [1],
                                           'init_states': 2, 'assets': 'official'})
    assert command.main(['--config', str(file), *flags]) == 2
    assert 'no LIBERO assets' in capsys.readouterr().err
    assert fake_processes[0] == []


def test_rows_that_are_not_asked_for_say_how_long_the_others_take(tmp_path):
    file = plan_file(tmp_path, tokens_per_s=1.0)
    plan = load_plan(file)
    play(plan, plan.rows[0], 1)  # 1,000 tokens per second, 8 s per episode
    training, episodes = run.Estimate(load_plan(file, ['short'])).left(plan.rows[1])
    store = TokenStore.open(plan.rows[1].final.data.store)
    assert training == pytest.approx(tokens_per_step(plan.rows[1].final, store) * 4 / 1000)
    assert episodes == pytest.approx(2 * 8.0)


def test_tables_show_intervals_errors_and_where_the_papers_number_is_from(tmp_path):
    plan = load_plan(plan_file(tmp_path))
    play(plan, plan.rows[0], 1, state_of_error=1)
    outcomes = [run.outcome(row, plan) for row in plan.rows]
    outcomes[0] = replace(outcomes[0], held_out={'action': 1.5, 'action_accuracy': 0.25})
    assert [one.finished for one in outcomes] == [False] * 3
    table = text_table(lines_of(outcomes, 'libero_object'), 'libero_object').splitlines()
    low, high = (round(100 * end) for end in wilson_interval(1, 1))
    assert table[1].split() == ['no', 'mask', '1/1', '100.0', str(low), 'to', str(high), '1',
                                '1.500', '25.0', '-', '4', '82.9', '54.0']
    assert '74.0 (goal)' in table[2] and table[3].split()[1:] == [
        '0/0', '-', '-', '0', '-', '-', '-', '2+4', '-', '-']
    markdown = markdown_table(lines_of(outcomes, 'libero_goal'), 'libero_goal')
    assert '| 79.6 | 54.0 |' in markdown and '| 74.0 | - |' in markdown


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path):
    processes = run.Processes()
    log = tmp_path / 'log'
    with pytest.raises(run.AblationError, match=r'status 1: train: .*nowhere\.yaml: cannot be'):
        processes.run('worldvla_ros.training.train', ['--config', '/nowhere.yaml'], log)
    processes.stop()
    with pytest.raises(run.AblationError, match='stopped'):
        processes.run('worldvla_ros.training.train', [], log)


@pytest.mark.slow
def test_rows_are_trained_and_evaluated_for_real(tmp_path, capsys):
    path = plan_file(tmp_path, evaluation={'tasks': [1], 'init_states': 1})
    assert command.main(['--config', str(path), '--rows', 'plain']) == 0
    row, = load_plan(path, ['plain']).rows
    settings = json.loads((Path(row.final.run.output) / 'final' / 'policy.json').read_text())
    assert not settings['chunk_mask']
    assert '/1 ' in capsys.readouterr().out

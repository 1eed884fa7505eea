# SPDX-License-Identifier: Apache-2.0
"""The ablation: a plan per row, rows that resume and fail alone, tables beside the paper's."""

import contextlib
import csv
from dataclasses import replace
import json
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import save_file
from training_runs import tiny_config
import yaml

from worldvla_ros.config import flatten
from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.run_folder import COLUMNS
from worldvla_ros.training.store import HEADER_FILE, TokenStore
from worldvla_sim import runner
from worldvla_sim.ablation import __main__ as command
from worldvla_sim.ablation import run
from worldvla_sim.ablation.paper import PAPER
from worldvla_sim.ablation.plan import load_plan, tokens_per_step
from worldvla_sim.ablation.report import lines_of, markdown_table, text_table
from worldvla_sim.assets.pack import PACK_VERSION
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.policies import checkpoint_name
from worldvla_sim.results import Results, wilson_interval

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / 'config' / 'train' / 'ablation.yaml'


def plan_file(folder, **changes):
    """Write a plan of three small rows; the last has two stages."""
    config = tiny_config(folder, steps=4)
    store, tokenizer = config.data.store, config.data.tokenizer
    content = {
        'output': str(folder / 'ablation'), 'processes': 2,
        'evaluation': {'suite': 'libero_object', 'tasks': [1], 'init_states': 2},
        'base': {'data': {'store': store, 'tokenizer': tokenizer, 'batch_size': 4,
                          'branches': ['action']},
                 'model': {'hidden_size': 32, 'intermediate_size': 64, 'num_layers': 1,
                           'num_heads': 2, 'text_tokens': 300},
                 'run': {'steps': 4, 'dtype': 'float32', 'evaluation_batches': 1}},
        'rows': {'plain': {'title': 'no mask', 'paper': 'chunk_unmasked',
                           'set': {'data.chunk_mask': False}},
                 'short': {'paper': 'history_1', 'set': {'data.history_length': 1}},
                 'two': {'pretrain': {'data.branches': ['world'], 'run.steps': 2},
                         'set': {'data.branches': ['action', 'world']}}}, **changes}
    path = folder / 'plan.yaml'
    path.write_text(yaml.safe_dump(content))
    return path


def finish(output, steps, weight=0):
    """Leave what a stage leaves that was exported after these steps."""
    Path(output).mkdir(parents=True, exist_ok=True)
    with (Path(output) / 'metrics.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow({'step': steps, 'split': 'train', 'tokens_per_s': 1000})
    final = Path(output) / 'final'
    final.mkdir(exist_ok=True)
    PolicySettings('stub', True).save(final / POLICY_FILE)
    save_file({'weight': np.full(3, weight, np.float32)}, final / 'model.safetensors')


def play(plan, row, successes, state_of_error=None):
    """Write the results that an evaluation of a trained row would write."""
    stage = row.final
    folder = plan.output / 'rows' / row.name
    for one in row.stages:
        finish(one.run.output, one.run.steps)
    suite = plan.config.evaluation.suite
    records = [EpisodeRecord(suite, 1, 'do it', state, state < successes, 100,
                             'broken' if state == state_of_error else None, 'builtin', 8.0)
               for state in range(plan.config.evaluation.init_states)]
    policy = str(Path(stage.run.output) / 'final')
    settings = {'policy': policy, 'suite': suite, 'seed': 0, 'assets': 'builtin',
                'checkpoint': checkpoint_name(policy), 'pack_version': PACK_VERSION}
    Results(settings, records, complete=True).save(folder / 'evaluation.json')


@pytest.fixture
def fake_processes(monkeypatch):
    """Commands that only write what the real ones would; returns what was asked of them."""
    asked, failing = [], set()

    def run_one(self, module, arguments, log, *, threads=1):
        asked.append((module, log.parent.name))
        if (module, log.parent.name) in failing:
            raise run.AblationError('out of memory')
        if module.endswith('train'):
            stage = yaml.safe_load(Path(arguments[1]).read_text())
            finish(stage['run']['output'], stage['run']['steps'])
        else:
            plan = load_plan(log.parents[3] / 'plan.yaml')
            play(plan, next(row for row in plan.rows if row.name == log.parent.name), 1)
    monkeypatch.setattr(run.Processes, 'run', run_one)
    monkeypatch.setattr(run, '_POLL', 0.01)
    return asked, failing


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
    ({}, 'give some'), ({'a': 3}, 'must be a section')])
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


def test_a_row_that_was_made_with_another_plan_is_not_shown_as_this_one(
        tmp_path, capsys, fake_processes):
    arguments = ['--config', str(plan_file(tmp_path))]
    assert command.main(arguments) == 0
    assert '1/2' in capsys.readouterr().out
    plan_file(tmp_path, scale={'steps': 2.0})
    assert command.main([*arguments, '--report']) == 1
    assert '1/2' not in capsys.readouterr().out
    assert command.main([*arguments, '--rows', 'plain']) == 1
    assert 'run.steps: 4 -> 8' in capsys.readouterr().out


def finished(file):
    """Names of the rows that count as finished."""
    plan = load_plan(file)
    return {row.name for row in plan.rows if run.outcome(row, plan).finished}


def test_a_row_of_other_data_does_not_count(tmp_path, capsys, caplog, fake_processes):
    """Pins a bug: a store that was made anew under its old name changed no row."""
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    assert finished(file) == {'plain', 'short', 'two'} and not caplog.text
    header = Path(load_plan(file).rows[0].final.data.store) / HEADER_FILE
    content = header.read_text()
    said = json.loads(content)
    header.write_text(json.dumps({**said, 'data': 'sha256:other'}))
    assert finished(file) == set()
    assert re.search(r'row plain: its episodes do not count \(stage 0, content of data.store: .*'
                     r"-> 'sha256:other'\)", caplog.text)
    assert command.main(['--config', str(file)]) == 1
    assert 'other data' in capsys.readouterr().out
    header.rename(header.with_name('moved'))  # a report needs no store
    assert finished(file) == {'plain', 'short', 'two'}


def test_a_row_of_other_weights_does_not_count(tmp_path, caplog, capsys, fake_processes):
    """Pins a bug: the episodes of weights that were there before stood for those of today."""
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    plain, _, two = load_plan(file).rows
    finish(plain.final.run.output, plain.final.run.steps, weight=1)
    first = two.stages[0].run
    finish(first.output, first.steps, weight=1)
    assert finished(file) == {'short'}
    assert 'row plain: its episodes do not count (checkpoint:' in caplog.text
    assert 'row two: its episodes do not count (stage 1, content of model.init_from:' in (
        caplog.text)
    assert command.main(['--config', str(file)]) == 1
    assert 'evaluation.json is of another checkpoint' in capsys.readouterr().out
    (plain_results := tmp_path / 'ablation/rows/plain/evaluation.json').unlink()
    assert command.main(['--config', str(file), '--rows', 'plain']) == 0 and plain_results.exists()


@pytest.mark.parametrize('stage', [0, 1])
def test_a_row_with_a_stage_that_is_not_trained_does_not_count(tmp_path, caplog, fake_processes,
                                                               stage):
    """Pins a bug: the results of a checkpoint that was gone counted on."""
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    shutil.rmtree(load_plan(file).rows[2].stages[stage].run.output)
    assert finished(file) == {'plain', 'short'}
    assert f'stage {stage} is not trained to its last step' in caplog.text


def test_a_row_of_another_asset_pack_does_not_count(tmp_path, monkeypatch, fake_processes):
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    monkeypatch.setattr(runner, 'PACK_VERSION', 'other')
    assert finished(file) == set()


def test_a_row_with_the_fixtures_of_an_older_program_does_not_count(tmp_path, caplog,
                                                                    fake_processes):
    """Pins a bug: its episodes stood in one table with those that were played since."""
    file = plan_file(tmp_path, evaluation={'suite': 'libero_goal', 'tasks': [1], 'init_states': 2})
    assert command.main(['--config', str(file)]) == 1, 'the stand-ins say nothing of fixtures'
    assert finished(file) == set()
    assert "fixtures: 'of the seed alone' -> 'of seed and initial state'" in caplog.text


def test_a_stage_that_is_older_than_the_note_of_its_data_still_counts(tmp_path, fake_processes):
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    for noted in (tmp_path / 'ablation').rglob('*.origin'):
        noted.unlink()
    assert finished(file) == {'plain', 'short', 'two'}


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

# SPDX-License-Identifier: Apache-2.0
"""What training writes beside its checkpoints: TensorBoard and speed."""

from dataclasses import replace
import sys
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import cv2
import pytest
import torch
from training_runs import columns, tiny_config

from worldvla_ros.training import run_folder
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.failures import TrainingError
from worldvla_ros.training.run_folder import RunFolder, read_metrics
from worldvla_ros.training.train import train
from worldvla_ros.training.trainer import Trainer


class FakeWriter:
    """Stands for TensorBoard, which need not be installed."""

    scalars: ClassVar[dict] = {}

    def __init__(self, folder, purge_step):
        self.scalars.clear()
        self.scalars['purged from'] = purge_step

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def flush(self):
        self.scalars['flushed'] = True


@pytest.mark.parametrize(('installed', 'wanted'), [
    (True, True), (True, None), (True, False), (False, None)])
def test_tensorboard_gets_every_value_where_it_is_installed(tmp_path, monkeypatch, installed,
                                                            wanted):
    module = SimpleNamespace(SummaryWriter=FakeWriter) if installed else None
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', module)
    FakeWriter.scalars.clear()
    log = run_folder.MetricsLog(tmp_path, 4, wanted)
    log.write(5, 'train', {'total': 1.5})
    expected = {'purged from': 5, ('train/total', 5): 1.5, 'flushed': True}
    assert FakeWriter.scalars == (expected if installed and wanted is not False else {})
    assert read_metrics(tmp_path)[0]['total'] == '1.5'


@pytest.mark.parametrize('older', [False, True])
def test_a_row_is_of_the_same_steps_whether_the_run_was_killed_or_not(tmp_path, older):
    """Pins a bug: the first row after a resume was the mean of the steps since then alone."""
    config = tiny_config(tmp_path)
    config = replace(config, run=replace(config.run, log_every=4))
    train(config)
    halves = replace(config, run=replace(config.run, output=str(tmp_path / 'halves')))
    trainer = Trainer(build_experiment(halves))
    step = trainer.train_step

    def killed(parts):
        if trainer.step == 3:
            raise MemoryError
        return step(parts)
    trainer.train_step = killed
    with pytest.raises(MemoryError):
        trainer.run()
    file = RunFolder(halves).latest() / 'trainer.pt'
    state = torch.load(file, weights_only=True)
    assert state['step'] == len(state['recent']) == 2
    if older:
        torch.save({name: state[name] for name in state if name != 'recent'}, file)
    train(halves)
    rows = [columns(read_metrics(tmp_path / run), 'step', 'total', 'grad_norm', 'learning_rate')
            for run in ('run', 'halves')]
    assert [row[0] for row in rows[1]] == ['4', '6']
    assert (rows[0] == rows[1]) == (not older)


def test_tensorboard_that_is_missed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(TrainingError, match=r'pip install -r requirements/.*tensorboard\.txt'):
        run_folder.MetricsLog(tmp_path, 0, True)


def test_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path):
    accumulators = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator',
        reason='tensorboard is not installed (requirements/optional/tensorboard.txt)')
    log = run_folder.MetricsLog(tmp_path, 0, True)
    for step in (1, 2, 3):
        log.write(step, 'train', {'total': step})
    log = run_folder.MetricsLog(tmp_path, 2, True)  # it stopped after step 3 and resumes at 2
    for step in (3, 4):
        log.write(step, 'train', {'total': 10 * step})
    shown = accumulators.EventAccumulator(str(tmp_path)).Reload().Scalars('train/total')
    assert [(event.step, event.value) for event in shown] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_curves_are_drawn_of_a_log_that_is_older_than_a_column(tmp_path):
    """As that of an unfinished run that is exported."""
    (tmp_path / 'metrics.csv').write_text('step,split,action\n1,train,2.5\n2,train,2.0\n')
    assert run_folder.plot_metrics(tmp_path).stat().st_size > 0


@pytest.mark.parametrize('held_out, panels', [('', 2), ('2,held_out,2.0,0.5,0.02\n', 3)])
def test_what_was_not_measured_has_no_panel(tmp_path, held_out, panels):
    """Pins a bug: a run without held-out episodes had a third of its picture empty."""
    (tmp_path / 'metrics.csv').write_text(
        'step,split,action,action_accuracy,motion_error\n2,train,2.0,0.4,\n' + held_out)
    image = cv2.imread(str(run_folder.plot_metrics(tmp_path)))
    assert image.shape[:2] == (400, 500 * panels)


def test_a_row_that_a_full_disk_cut_off_is_left_out(tmp_path):
    """Pins a bug: the ablation and its dry run died of the columns that were not there."""
    log = run_folder.MetricsLog(tmp_path, 0, False)
    for step in (1, 2):
        log.write(step, 'train', {'total': 0.5, 'tokens_per_s': 1000, 'mfu': 0.25})
    path = tmp_path / 'metrics.csv'
    path.write_text(path.read_text()[:-15])
    assert [row['step'] for row in read_metrics(tmp_path)] == ['1']


def test_a_log_that_is_written_anew_while_it_is_read_has_no_other_columns(tmp_path):
    """As the ablation reads those of its runs."""
    stop = threading.Event()

    def rewrite():
        while not stop.is_set():
            with (tmp_path / 'metrics.csv').open('w') as file:
                file.write('step,split\n1,train\n')
    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        rows = [row for _ in range(3000) for row in read_metrics(tmp_path)]
        deadline = time.monotonic() + 30
        while not rows and time.monotonic() < deadline:
            rows = read_metrics(tmp_path)
    finally:
        stop.set()
        writer.join()
    assert rows and all(row == {'step': '1', 'split': 'train'} for row in rows)


def test_speed_is_logged_against_the_machine(tmp_path, capsys):
    train(tiny_config(tmp_path, steps=2))
    rows = [row for row in read_metrics(tmp_path / 'run') if row['split'] == 'train']
    assert all(float(row['tokens_per_s']) > 0 and 0 < float(row['mfu']) < 1 for row in rows)
    assert 'of the' in (said := capsys.readouterr().err) and 'GFLOP/s' in said

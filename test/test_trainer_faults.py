# SPDX-License-Identifier: Apache-2.0
"""Training that is stopped, killed or given what does not fit: nothing is lost."""

from contextlib import nullcontext
from dataclasses import replace
import os
from pathlib import Path
import shutil
import signal

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from training_data import episode, small_store, tiny_tokenizer, write_store
from training_runs import TINY, tiny_config, weights

from worldvla_ros.errors import CheckpointError, ConfigError
from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.training import run_folder
from worldvla_ros.training.batches import fitting_batch
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.failures import DatasetError, TrainingError
from worldvla_ros.training.loss_of_batch import TERMS
from worldvla_ros.training.run_folder import RunFolder, read_metrics
from worldvla_ros.training.stop_signals import StopSignals
from worldvla_ros.training.train import train
from worldvla_ros.training.trainer import Trainer


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_stop_saves_the_step_that_it_does(tmp_path, number):
    whole = tiny_config(tmp_path, steps=4)
    config = replace(whole, run=replace(whole.run, save_every=100,
                                        output=str(tmp_path / 'stopped')))
    trainer = Trainer(build_experiment(config))
    step, before = trainer.train_step, signal.getsignal(number)

    def stopped_in_the_third(batch):
        if trainer.step == 2:
            for _ in range(2):  # as `timeout` does
                signal.raise_signal(number)
        return step(batch)
    trainer.train_step = stopped_in_the_third
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert signal.getsignal(number) is before
    assert RunFolder(config).latest().name == 'step-00000003'
    assert weights(train(config)) == weights(train(whole))


def test_a_wish_to_stop_that_is_repeated_stops_at_once(monkeypatch):
    monkeypatch.setattr(StopSignals, 'SAME_WISH', 0.0)
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_few_held_out_episodes_make_smaller_batches(tmp_path):
    """Two are held out: 16 action and 22 world samples, where a batch takes 30 and 10."""
    small_store(tmp_path, num_episodes=20)
    config = tiny_config(tmp_path, steps=3, world_share=0.25)
    config = replace(config, data=replace(config.data, batch_size=40))
    experiment = build_experiment(config)
    assert fitting_batch(experiment.held_out, 0.25, 40) == 22
    train(config)
    row, = [row for row in read_metrics(tmp_path / 'run') if row['split'] == 'held_out']
    assert row['step'] == '3' and float(row['action']) > 0 and float(row['world']) > 0


@pytest.mark.parametrize('save_every', [2, 100])
def test_an_evaluation_that_fails_costs_no_step(tmp_path, monkeypatch, save_every):
    """Pins a bug: where less was saved than evaluated, it cost all since the last checkpoint."""
    small_store(tmp_path, num_episodes=20)
    config = tiny_config(tmp_path, steps=4)
    config = replace(config, run=replace(config.run, save_every=save_every, evaluate_every=2))

    def fails(trainer):
        raise DatasetError('a broken sample')
    monkeypatch.setattr(Trainer, 'evaluate', fails)
    with pytest.raises(DatasetError, match='a broken sample'):
        train(config)
    assert RunFolder(config).latest().name == 'step-00000002'


@pytest.mark.parametrize(('accumulate', 'most'), [(1, 22), (2, 11), (8, 5), (40, 1)])
def test_an_evaluation_takes_no_more_at_once_than_a_training_step_and_says_the_same(
        tmp_path, monkeypatch, accumulate, most):
    """Pins a bug: a run that just fitted ran out of memory at its first evaluation.

    Of batches of 40, 22 samples can be filled; those of a part may lack a branch.
    """
    small_store(tmp_path, num_episodes=20)
    config = tiny_config(tmp_path, world_share=0.25, accumulate=accumulate)
    config = replace(config, data=replace(config.data, batch_size=40),
                     loss=replace(config.loss, bin_smoothing=1.5))
    trainer = Trainer(build_experiment(config))
    loss, table, seen = trainer._loss_of_one, trainer._experiment.held_out, []
    with torch.no_grad():
        whole = loss.eval()(trainer._collate(table, table.batch(22, 0.25, 0, 0).tolist()))
    monkeypatch.setattr(loss, 'forward', lambda batches, *sums, forward=loss.forward: seen.append(
        sum(len(batch.input_ids) for batch in batches)) or forward(batches, *sums))
    values = trainer.evaluate()
    assert max(seen) == most and sum(seen) == 22
    for name in TERMS:
        assert values[name] == pytest.approx(getattr(whole, name).item(), rel=1e-5,
                                             nan_ok=True), name  # NaN: not taught here


def trainer_with_nan_at(config, step):
    trainer = Trainer(build_experiment(config))
    trainer._experiment.pretrained.model.model.norm.register_forward_hook(
        lambda *arguments: arguments[2] * (float('nan') if trainer.step == step else 1))
    return trainer


def test_a_loss_that_is_not_finite_before_the_first_checkpoint_promises_none(tmp_path):
    """Pins a bug: it said that the last checkpoint is good."""
    trainer = trainer_with_nan_at(tiny_config(tmp_path, steps=4), 1)
    with pytest.raises(TrainingError, match='No checkpoint was saved yet: begin again') as caught:
        trainer.run()
    assert 'init_from' not in str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = tiny_config(tmp_path, steps=4)
    trainer = trainer_with_nan_at(config, 3)
    with pytest.raises(TrainingError, match=r'step 3: the loss is nan.*last checkpoint is good'):
        trainer.run()
    latest = RunFolder(config).latest()
    assert latest.name == 'step-00000002'
    assert all(torch.isfinite(p).all() for p in build_experiment(
        config, latest).pretrained.model.parameters())


def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    real = run_folder.save_model

    def disk_is_full(model, folder, **options):
        real(model, folder, **options)
        if len(list((tmp_path / 'run' / 'checkpoints').glob('step-*'))) == 2:
            raise OSError(28, 'No space left on device')
    monkeypatch.setattr(run_folder, 'save_model', disk_is_full)
    with pytest.raises(TrainingError, match='the disk is full'):
        train(config)
    monkeypatch.undo()
    left = sorted((tmp_path / 'run' / 'checkpoints').iterdir())
    assert [path.name for path in left] == ['step-00000002', 'step-00000004']
    assert train(config) is not None


@pytest.mark.parametrize('file', [
    'train.yaml', 'trainer.pt', 'config.json', 'model.safetensors', 'policy.json',
    'tokenizer.json', 'image_tokenizer/config.json', 'image_tokenizer/model.safetensors'])
def test_a_checkpoint_that_a_power_cut_emptied_is_named_and_the_one_before_it_serves(
        tmp_path, file):
    """Pins a bug: most of the messages named a value of a file and no way out."""
    config = tiny_config(tmp_path, steps=4)
    whole = weights(train(config))
    newest = RunFolder(config).latest()
    (newest / file).write_bytes(b'')
    with pytest.raises(TrainingError, match=f'checkpoint {newest} is damaged .*delete this'):
        train(config)
    shutil.rmtree(newest)
    assert weights(train(config)) == whole


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Pins a bug: after a power cut a renamed folder held empty files."""
    config, events = tiny_config(tmp_path, steps=1), []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, 'fsync', lambda file: events.append(
        str(Path(f'/proc/self/fd/{file}').readlink())) or fsync(file))
    monkeypatch.setattr(Path, 'rename', lambda draft, target: events.append(
        (str(draft), str(target))) or rename(draft, target))
    trainer = Trainer(build_experiment(config))
    trainer.step = 1
    events.clear()
    trainer._save()
    saved = RunFolder(config).latest()
    draft = next(event[0] for event in events if event[1:] == (str(saved),))
    at = events.index((draft, str(saved)))
    files = {str(path.relative_to(saved)) for path in saved.rglob('*')} | {'.'}
    assert {os.path.relpath(event, draft) for event in events[:at]} == files
    assert events[at + 1] == str(saved.parent)


def test_what_a_killed_save_left_goes_with_the_next(tmp_path):
    left = [tmp_path / 'run' / 'checkpoints' / '.draft-a', tmp_path / 'run' / '.draft-final-b']
    others = tmp_path / 'run' / '.draft-c'  # of a command that writes beside the run
    for folder in (*left, others):
        folder.mkdir(parents=True)
        (folder / 'model.safetensors').write_bytes(b'half')
    train(tiny_config(tmp_path, steps=1))
    assert not any(folder.exists() for folder in left) and others.exists()


def test_a_run_is_not_resumed_with_another_configuration(tmp_path):
    train(tiny_config(tmp_path, steps=2))
    with pytest.raises(ConfigError, match=r'data\.horizon: 5 -> 4'):
        train(tiny_config(tmp_path, steps=2, horizon=4))


def test_a_run_goes_on_longer_and_with_its_data_moved(tmp_path):
    config = tiny_config(tmp_path, steps=2)
    train(config)
    (tmp_path / 'store').rename(tmp_path / 'moved')
    train(replace(config, data=replace(config.data, store=str(tmp_path / 'moved')),
                  run=replace(config.run, steps=4)))
    assert RunFolder(config).latest().name == 'step-00000004'


def test_a_run_that_goes_on_otherwise_says_what_that_changes(tmp_path, capsys):
    config = tiny_config(tmp_path, steps=3)
    train(config)
    assert 'learning rate' not in capsys.readouterr().err
    train(replace(config, run=replace(config.run, steps=6, dtype='bfloat16')))
    said = capsys.readouterr().err
    assert 'run.steps: 3 -> 6\n' in said
    assert "run.dtype: 'float32' -> 'bfloat16'\n" in said
    assert 'the learning rate of the next step is 0.000861; it would have been 5e-05\n' in said


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    config = tiny_config(tmp_path, steps=2)
    train(config)
    (tmp_path / 'store').rename(tmp_path / 'old')
    write_store(tmp_path / 'store', [episode(7), episode(8)], tiny_tokenizer(), 64)
    with pytest.raises(TrainingError, match='was trained on data'):
        train(config)


def test_a_store_of_another_tokenizer_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    save_image_tokenizer(tiny_tokenizer(seed=3), tmp_path / 'tokenizer')
    with pytest.raises(DatasetError, match='was tokenised with'):
        build_experiment(config)


def test_a_checkpoint_of_another_vocabulary_is_refused(tmp_path):
    first = train(tiny_config(tmp_path, steps=1))
    other = tmp_path / 'other'
    save_image_tokenizer(tiny_tokenizer(num_codes=128), other / 'tokenizer')
    write_store(other / 'store', [episode()], tiny_tokenizer(num_codes=128), 64)
    config = tiny_config(other)
    with pytest.raises(CheckpointError, match='64 image codes at 64 px'):
        build_experiment(replace(config, model=replace(TINY, init_from=str(first))))


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('fails', [False, True])
def test_no_process_leaves_before_the_first_has_written(tmp_path, monkeypatch, rank, fails):
    """Pins a bug: one that ended before could have the first one stopped in its export."""
    config = tiny_config(tmp_path, steps=1)
    config = replace(config, run=replace(config.run, parallel='fsdp'))
    written = []

    def barrier(**_):
        written.append(sorted(path.name for path in (tmp_path / 'run').rglob('*')
                              if path.name in ('step-00000001', 'final')))
    monkeypatch.setattr(dist, 'monitored_barrier', barrier)
    if fails:
        def full(*_):
            raise TrainingError('no space left')
        monkeypatch.setattr(RunFolder, 'export', full)
    dist.init_process_group('fake', store=FakeStore(), rank=rank, world_size=2)
    try:
        trainer = Trainer(build_experiment(config))
        monkeypatch.setattr(trainer, '_train', lambda _: trainer._save())
        trainer.step = 1
        with pytest.raises(TrainingError) if fails and rank == 0 else nullcontext():
            assert (trainer.run() is None) == (rank == 1)
    finally:
        dist.destroy_process_group()
    saved = ['step-00000001'] if rank == 0 else []
    assert written == [saved, saved if fails or rank else ['final', *saved]]


def test_compilation_without_a_compiler_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    config = tiny_config(tmp_path)
    with pytest.raises(TrainingError, match=r'no no-such-compiler; install g\+\+'):
        train(replace(config, run=replace(config.run, compile=True, device='cpu')))

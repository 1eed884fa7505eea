# SPDX-License-Identifier: Apache-2.0
"""Training: it memorises, resumes bit for bit, and loses nothing when something goes wrong."""

from dataclasses import replace
from itertools import pairwise
import signal
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from training_data import INSTRUCTIONS, episode, small_store, tiny_tokenizer, write_store

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import CheckpointError, ConfigError
from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.training import run_folder
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.failures import DatasetError, TrainingError
from worldvla_ros.training.run_folder import RunFolder, read_metrics
from worldvla_ros.training.settings import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from worldvla_ros.training.train import train
from worldvla_ros.training.trainer import StopSignals, Trainer, fitting_batch, learning_rate

TINY = ModelConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2,
                   text_tokens=300, dropout=0.1)


def tiny_config(folder, steps=6, output='run', **data):
    store, tokenizer = folder / 'store', folder / 'tokenizer'
    if not store.exists():
        small_store(folder)
    return TrainConfig(
        data=DataConfig(str(store), str(tokenizer), batch_size=4, **data), model=TINY,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        run=RunConfig(str(folder / output), steps, dtype='float32', save_every=2,
                      log_every=1, evaluate_every=3, evaluation_batches=1))


def columns(rows, *names):
    return [[row[name] for name in names] for row in rows if row['split'] == 'train']


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.rglob('*') if path.is_file()
            and path.name != 'train.yaml'}


def test_a_tiny_model_memorises_two_demonstrations(tmp_path):
    """From demonstrations to actions over every part: store, training, checkpoint, policy."""
    demos = [episode(number, 10, INSTRUCTIONS[number], f'task{number}') for number in range(2)]
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    write_store(tmp_path / 'store', demos, tiny_tokenizer(), 64)
    config = tiny_config(tmp_path, steps=120, branches=('action',))
    config = replace(
        config, data=replace(config.data, batch_size=12),
        model=replace(TINY, hidden_size=64, intermediate_size=128, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10, weight_decay=0.0),
        run=replace(config.run, save_every=120, log_every=10))
    policy = WorldVLAPolicy.from_pretrained(train(config), dtype='float32')

    assert float(read_metrics(tmp_path / 'run')[-1]['action_accuracy']) == 1.0
    tokenizer = policy.pretrained.action_tokenizer
    for demo in demos:
        for start in (0, 3, 5):
            frames = tuple(Frame(demo.frames[i], i) for i in range(max(0, start - 1), start + 1))
            chunk = policy.predict_chunk(Observation(frames, demo.instruction))
            error = np.abs(chunk.actions - demo.actions[start:start + 5])
            assert (error <= tokenizer.bin_width).all()


def test_a_policy_that_reads_the_state_learns_from_it(tmp_path):
    """Pictures and text are the same everywhere, so that only the state tells the actions."""
    demos = [replace(episode(number, 10), frames=episode(0, 10).frames[:1].repeat(10, 0))
             for number in range(2)]
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    write_store(tmp_path / 'store', demos, tiny_tokenizer(), 64)
    config = tiny_config(tmp_path, steps=120, branches=('action',), state=True, history_length=1)
    config = replace(
        config, data=replace(config.data, batch_size=12),
        model=replace(TINY, hidden_size=64, intermediate_size=128, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10, weight_decay=0.0),
        run=replace(config.run, save_every=120, log_every=10))
    policy = WorldVLAPolicy.from_pretrained(train(config), dtype='float32')
    assert policy.reads_state
    assert float(read_metrics(tmp_path / 'run')[-1]['action_accuracy']) == 1.0


def test_a_checkpoint_without_the_state_begins_to_read_it(tmp_path):
    before = train(tiny_config(tmp_path, steps=2))
    config = tiny_config(tmp_path, steps=2, output='next', state=True)
    config = replace(config, model=replace(config.model, init_from=str(before)))
    start = build_experiment(config).pretrained
    old = WorldVLAPolicy.from_pretrained(before, dtype='float32').pretrained
    rows = old.model.config.vocabulary.size
    assert start.model.config.vocabulary.size == rows + 258 and start.settings.reads_state
    weights_of = start.model.state_dict()
    for name, value in old.model.state_dict().items():
        torch.testing.assert_close(weights_of[name][:len(value)], value, rtol=0, atol=0)
    bins = start.model.config.vocabulary.state_bins
    table = start.model.model.embed_tokens.weight.detach()[bins.start:bins.stop]
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(table[100], table[101], 0) > 0.8
    assert similarity(table[100], table[101], 0) > similarity(table[100], table[140], 0) + 0.3
    policy = WorldVLAPolicy.from_pretrained(train(config), dtype='float32')
    assert policy.reads_state

    without = replace(config, data=replace(config.data, state=False),
                      model=replace(config.model, init_from=str(tmp_path / 'next' / 'final')),
                      run=replace(config.run, output=str(tmp_path / 'without')))
    assert not build_experiment(without).pretrained.settings.reads_state


@pytest.mark.parametrize('checkpointing', [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, checkpointing):
    config = tiny_config(tmp_path)
    config = replace(config, model=replace(TINY, activation_checkpointing=checkpointing))
    whole = train(config)
    halves = replace(config, run=replace(config.run, output=str(tmp_path / 'halves')))

    trainer = Trainer(build_experiment(halves))
    killed = iter([None] * 5)
    step = trainer.train_step
    trainer.train_step = lambda batch: (next(killed), step(batch))[1]
    with pytest.raises((StopIteration, RuntimeError)):
        trainer.run()
    assert RunFolder(halves).latest().name == 'step-00000004'
    resumed = train(halves)

    assert weights(resumed) == weights(whole)
    names = ('step', 'total', 'grad_norm', 'learning_rate', 'action_accuracy')
    rows = [columns(read_metrics(tmp_path / run), *names) for run in ('run', 'halves')]
    assert rows[0] == rows[1] and len(rows[0]) == 6


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


def test_another_seed_gives_other_losses(tmp_path):
    config = tiny_config(tmp_path, steps=2)
    other = replace(config, run=replace(config.run, seed=1, output=str(tmp_path / 'other')))
    for one in (config, other):
        train(one)
    assert columns(read_metrics(tmp_path / 'run'), 'total') != columns(
        read_metrics(tmp_path / 'other'), 'total')


def test_only_the_last_two_checkpoints_are_kept_and_each_is_a_policy(tmp_path):
    config = tiny_config(tmp_path)
    train(config)
    kept = sorted((tmp_path / 'run' / 'checkpoints').iterdir())
    assert [path.name for path in kept] == ['step-00000004', 'step-00000006']
    for folder in kept:
        assert WorldVLAPolicy.from_pretrained(folder).horizon == 5
    assert (tmp_path / 'run' / 'curves.png').stat().st_size > 0
    assert [row['step'] for row in read_metrics(tmp_path / 'run')
            if row['split'] == 'held_out'] == []  # two episodes per task: none is held out


def test_held_out_episodes_are_measured_without_dropout(tmp_path):
    small_store(tmp_path, num_episodes=20)
    trainer = Trainer(build_experiment(tiny_config(tmp_path)))
    values = trainer.evaluate()
    assert values == trainer.evaluate()
    assert values['action'] > 0 and values['world'] > 0


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


def test_an_evaluation_that_fails_costs_no_step(tmp_path, monkeypatch):
    small_store(tmp_path, num_episodes=20)
    config = tiny_config(tmp_path, steps=2)

    def fails(trainer):
        raise DatasetError('a broken sample')
    monkeypatch.setattr(Trainer, 'evaluate', fails)
    with pytest.raises(DatasetError, match='a broken sample'):
        train(config)
    assert RunFolder(config).latest().name == 'step-00000002'


@pytest.mark.parametrize('start', ['', 'run'])
def test_the_checkpoint_says_whether_it_was_trained_with_the_chunk_mask(tmp_path, start):
    masked = build_experiment(tiny_config(tmp_path)).pretrained
    assert masked.settings.chunk_mask
    config = tiny_config(tmp_path, output='unmasked', chunk_mask=False)
    if start:
        first = str(train(tiny_config(tmp_path, steps=2)))
        config = replace(config, model=replace(TINY, init_from=first))
    assert not build_experiment(config).pretrained.settings.chunk_mask


def test_world_pre_training_is_a_stage_that_the_next_run_starts_from(tmp_path):
    first = train(tiny_config(tmp_path, steps=2, output='world', branches=('world',)))
    config = tiny_config(tmp_path, steps=2, output='both')
    config = replace(config, model=replace(TINY, init_from=str(first)))
    model = build_experiment(config).pretrained.model
    saved = WorldVLAPolicy.from_pretrained(first, dtype='float32').pretrained.model
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name])
    assert train(config) is not None


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    config = tiny_config(tmp_path, steps=4)
    trainer = Trainer(build_experiment(config))
    trainer._experiment.pretrained.model.model.norm.register_forward_hook(
        lambda *arguments: arguments[2] * (float('nan') if trainer.step == 3 else 1))
    with pytest.raises(TrainingError, match='step 3: the loss is nan'):
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


@pytest.mark.parametrize('schedule, last', [('cosine', 0.05), ('constant', 1.0)])
def test_the_learning_rate_warms_up_and_ends_where_it_should(schedule, last):
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10)
    rates = [learning_rate(step, config, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 == max(rates)
    assert rates[1000] == pytest.approx(last)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_dropout_and_bfloat16_are_used_in_training(tmp_path):
    """Two steps on one batch give other losses with dropout; autocast gives finite ones."""
    config = tiny_config(tmp_path)
    config = replace(config, run=replace(config.run, dtype='bfloat16'))
    trainer = Trainer(build_experiment(config))
    batch, = trainer._batches(0)
    trainer._loss.train()
    torch.manual_seed(0)
    losses = {trainer._loss(batch).total.item() for _ in range(2)}
    assert len(losses) == 2 and all(np.isfinite(list(losses)))
    assert len({trainer._loss.eval()(batch).total.item() for _ in range(2)}) == 1


def test_a_batch_in_parts_learns_what_it_learns_at_once(tmp_path):
    """Of samples with equally many labels, so that the mean of the parts is that of the whole."""
    whole = tiny_config(tmp_path, steps=3, output='whole', branches=('action',))
    whole = replace(whole, model=replace(TINY, dropout=0.0))
    parts = replace(whole, data=replace(whole.data, accumulate=2),
                    run=replace(whole.run, output=str(tmp_path / 'parts')))
    for config in (whole, parts):
        train(config)
    values = [np.array(columns(read_metrics(tmp_path / name), 'total', 'grad_norm'), float)
              for name in ('whole', 'parts')]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-4)
    with pytest.raises(TrainingError, match=r'data\.accumulate \(3\)'):
        Trainer(build_experiment(replace(parts, data=replace(parts.data, accumulate=3))))


def test_weights_that_are_spread_are_gathered_equally_often_by_every_process(tmp_path):
    """A share of the batch may lack a branch; another number of passes would wait for ever."""
    trainer = Trainer(build_experiment(tiny_config(tmp_path)))
    assert {len(trainer._batches(step)[0]) for step in range(8)} == {1, 2}
    trainer._sharded = True
    assert {len(trainer._batches(step)[0]) for step in range(8)} == {1}


def test_codes_that_look_alike_start_alike(tmp_path):
    pretrained = build_experiment(tiny_config(tmp_path)).pretrained
    codebook = pretrained.image_tokenizer.quantize.embedding.weight.detach()
    codes = pretrained.model.config.vocabulary.codes
    rows = pretrained.model.model.embed_tokens.weight[codes.start:codes.stop]
    centred = torch.nn.functional.normalize(codebook - codebook.mean(0), dim=-1)
    agreement = np.corrcoef((centred @ centred.T).flatten().numpy(),
                            (rows @ rows.T).detach().flatten().numpy())[0, 1]
    assert agreement > 0.8


@pytest.mark.slow  # half a minute of compilation
def test_compiled_layers_learn_the_same_and_keep_their_names(tmp_path):
    plain = tiny_config(tmp_path, steps=2, output='plain')
    plain = replace(plain, model=replace(TINY, dropout=0.0))
    compiled = replace(plain, run=replace(plain.run, output=str(tmp_path / 'compiled'),
                                          compile=True))
    losses = [columns(read_metrics(folder), 'total') for folder in
              (tmp_path / 'plain', tmp_path / 'compiled') if train(
                  plain if folder.name == 'plain' else compiled)]
    np.testing.assert_allclose(np.array(losses[0], float), np.array(losses[1], float), rtol=1e-4)
    assert set(weights(tmp_path / 'plain/final')) == set(weights(tmp_path / 'compiled/final'))


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


def test_speed_is_logged_against_the_machine(tmp_path, capsys):
    train(tiny_config(tmp_path, steps=2))
    rows = [row for row in read_metrics(tmp_path / 'run') if row['split'] == 'train']
    assert all(float(row['tokens_per_s']) > 0 and 0 < float(row['mfu']) < 1 for row in rows)
    assert 'of the' in (said := capsys.readouterr().err) and 'GFLOP/s' in said

# SPDX-License-Identifier: Apache-2.0
"""Model FLOPs are those that autograd runs, and speed is that of the time that counts."""

from dataclasses import replace

import pytest
from torch.utils.flop_counter import FlopCounterMode
from training_runs import TINY, tiny_config

from worldvla_ros.training import throughput
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.throughput import Throughput, training_flops
from worldvla_ros.training.trainer import Trainer


@pytest.mark.parametrize('layers', [1, 3])
def test_the_formula_counts_what_a_step_computes(tmp_path, layers):
    config = tiny_config(tmp_path)
    trainer = Trainer(build_experiment(replace(config, model=replace(TINY, num_layers=layers))))
    batches, = trainer.batches(0)
    assert len(batches) == 2, 'both branches, of different lengths'
    with FlopCounterMode(display=False) as counter:
        trainer._loss(batches).total.backward()
    model = trainer._loss.model
    assert training_flops(model.config, batches) == pytest.approx(counter.get_total_flops(),
                                                                  rel=1e-3)


def test_rates_are_of_all_processes_and_leave_out_what_is_not_training(tmp_path, monkeypatch):
    clock = iter([0.0, 10.0, 12.0, 12.0, 20.0, 24.0, 24.0])
    monkeypatch.setattr(throughput, 'matmul_peak', lambda *_: 1e9)
    monkeypatch.setattr(throughput.time, 'perf_counter', lambda: next(clock))
    trainer = build_experiment(tiny_config(tmp_path))
    from worldvla_ros.training.batches import collate
    batch = collate([trainer.train[0], trainer.train[1]])
    model = trainer.pretrained.model.config
    flops = training_flops(model, [batch])
    speed = Throughput(model, 'cpu', None, processes=2)  # 0 s
    speed.start()  # 10 s
    speed.add([batch])
    rates = speed.read()  # 12 s
    assert rates['tokens_per_s'] == batch.input_ids.numel()  # twice in 2 s
    assert rates['mfu'] == pytest.approx(flops / 2e9)
    speed.start()  # 20 s: the eight before do not count
    speed.add([batch])
    assert speed.read()['tokens_per_s'] == batch.input_ids.numel() / 2
    assert f'{4 * batch.input_ids.numel() / 6:.0f} tokens/s' in speed.summary()


def test_the_peak_is_a_rate_of_this_machine():
    import torch
    assert 1e8 < throughput.matmul_peak('cpu', torch.float32) < 1e14

# SPDX-License-Identifier: Apache-2.0
"""Training on a CUDA device: it learns in bfloat16, resumes, and its checkpoint loads anywhere."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import tiny_config

from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.loss_of_batch import LossOfBatch
from worldvla_ros.training.run_folder import RunFolder, read_metrics
from worldvla_ros.training.train import train
from worldvla_ros.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                  reason='needs a CUDA device')]


@pytest.mark.parametrize('length', [None, 144])
def test_a_run_on_the_gpu_resumes_and_its_checkpoint_loads(tmp_path, length):
    config = tiny_config(tmp_path, steps=2, world_share=0.25, code_noise=0.05, state=True,
                         length=length)
    config = replace(config, run=replace(config.run, device='cuda', dtype='bfloat16'))
    train(config)
    train(replace(config, run=replace(config.run, steps=3)))
    assert RunFolder(config).latest().name == 'step-00000003'
    rows = [row for row in read_metrics(tmp_path / 'run') if row['split'] == 'train']
    assert [row['step'] for row in rows] == ['1', '2', '3']
    for name in ('total', 'action', 'world', 'grad_norm', 'tokens_per_s', 'mfu'):
        assert np.isfinite([float(row[name]) for row in rows]).all()
    assert WorldVLAPolicy.from_pretrained(tmp_path / 'run' / 'final').reads_state


def test_the_host_never_waits_for_the_loss(tmp_path):
    config = tiny_config(tmp_path, world_share=0.25)
    trainer = Trainer(build_experiment(replace(config, run=replace(config.run, device='cuda'))))
    loss = LossOfBatch(trainer.model, config.loss, torch.bfloat16)
    (part,) = trainer.batches(0)
    batches = [batch.to(trainer.device) for batch in part]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        terms = loss(batches)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert torch.isfinite(terms.total) and torch.isfinite(terms.world)

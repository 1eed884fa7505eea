# SPDX-License-Identifier: Apache-2.0
"""The commands of training: recipes, errors as sentences, several processes."""

from dataclasses import asdict, replace
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from training_runs import tiny_config
import yaml

from worldvla_ros.config import load_yaml
from worldvla_ros.model.image_tokenizer import load_image_tokenizer
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.tokens.vocab import Vocabulary
from worldvla_ros.training.run_folder import read_metrics
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.train import main
from worldvla_ros.training.vqgan_trainer import VqganRunConfig

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in (ROOT / 'config' / 'train').glob('*.yaml')
                 if path.stem != 'ablation')  # a plan of many runs, see sim/test_ablation.py


def written(config, path):
    path.write_text(yaml.safe_dump(asdict(config)))
    return ['--config', str(path)]


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read(path):
    load_yaml(path, VqganRunConfig if 'vqgan' in path.stem else TrainConfig)


@pytest.mark.parametrize(('tokenizer', 'policies'), [
    ('mini_vqgan', ('mini_cpu', 'mini_cpu_dagger')), ('mini_gpu_vqgan', ('mini_gpu',))])
def test_recipes_hold_out_by_the_split_of_their_image_tokenizer(tokenizer, policies):
    """Pins a bug: the large tokenizer had seen what its policy held out."""
    recipes = ROOT / 'config' / 'train'
    split = load_yaml(recipes / f'{tokenizer}.yaml', VqganRunConfig).split
    for policy in policies:
        assert load_yaml(recipes / f'{policy}.yaml', TrainConfig).data.split == split


def test_what_the_gpu_recipe_makes_is_small_enough_to_ship():
    """At most 40 MB with the image tokenizer, for as many text tokens as the recipe allows."""
    config = load_yaml(ROOT / 'config' / 'train' / 'mini_gpu.yaml', TrainConfig)
    tokenizer = ROOT / config.data.tokenizer
    image_tokenizer = load_image_tokenizer(tokenizer)
    shape = config.model
    with torch.device('meta'):
        model = Transformer(TransformerConfig(
            shape.hidden_size, shape.intermediate_size, shape.num_layers, shape.num_heads,
            vocabulary=Vocabulary.compact(shape.text_tokens,
                                          image_tokenizer.config.n_embed).with_state()))
    weights = 2 * sum(parameter.numel() for parameter in model.parameters())
    files = sum(path.stat().st_size for path in tokenizer.iterdir())
    assert weights + files < 39.9e6  # [bytes]; headers and settings take less than 0.1 MB


def test_the_command_trains_from_one_file_and_keeps_it_in_the_checkpoint(tmp_path, capsys):
    config = tiny_config(tmp_path, steps=2)
    assert main(written(config, tmp_path / 'run.yaml')) == 0
    assert WorldVLAPolicy.from_pretrained(tmp_path / 'run' / 'final').horizon == 5
    assert str(tmp_path / 'run' / 'final') in capsys.readouterr().out
    for kept in ('checkpoints/step-00000002', 'final'):
        assert load_yaml(tmp_path / 'run' / kept / 'train.yaml', TrainConfig) == config


def test_an_unfinished_run_is_exported_from_its_newest_checkpoint(tmp_path, capsys):
    config = tiny_config(tmp_path, steps=2)
    file = written(config, tmp_path / 'run.yaml')
    assert main([*file, '--export']) == 1
    assert 'no checkpoint to export' in capsys.readouterr().err
    assert main(file) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / 'run/final').iterdir()
             if path.is_file()}
    shutil.rmtree(tmp_path / 'run/final')
    shutil.rmtree(tmp_path / 'store')  # exporting needs no data
    assert main([*file, '--export']) == 0
    said = capsys.readouterr()
    assert 'exporting step-00000002 of 2 steps' in said.err and 'run/final' in said.out
    for name, content in whole.items():
        assert (tmp_path / 'run/final' / name).read_bytes() == content


def test_a_command_that_is_terminated_keeps_its_last_step(tmp_path):
    config = tiny_config(tmp_path, steps=100000)
    config = replace(config, run=replace(config.run, save_every=100000, log_every=1,
                                         evaluation_batches=0))
    command = [sys.executable, '-m', 'worldvla_ros.training.train',
               *written(config, tmp_path / 'run.yaml')]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, 'OMP_NUM_THREADS': '1',
                                    'PYTHONPATH': str(ROOT)})
    try:
        while not read_metrics(tmp_path / 'run'):
            assert process.poll() is None
            time.sleep(0.2)
        process.terminate()
        said = process.communicate(timeout=100)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and 'run the same command again' in said
    saved, = (tmp_path / 'run' / 'checkpoints').iterdir()
    assert f'stopped after step {int(saved.name[5:])}, which is saved' in said


HOLD = """
import sys
from pathlib import Path
from worldvla_ros.training.run_lock import alone_in
with alone_in(Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_a_second_training_in_the_same_folder_is_refused_until_the_first_is_dead(
        tmp_path, capsys):
    file = written(tiny_config(tmp_path, steps=1), tmp_path / 'run.yaml')
    with subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path / 'run')], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == 'held\n'
            assert main(file) == 1
            said = capsys.readouterr().err
            assert f'in use by another training (process {holder.pid} on ' in said
            assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == ['.lock']
            several = subprocess.run(
                [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                 '--nproc-per-node', '2', '-m', 'worldvla_ros.training.train', *file], cwd=ROOT,
                capture_output=True, text=True, timeout=200, check=False,
                env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT),
                     'CUDA_VISIBLE_DEVICES': ''})
            assert several.returncode == 1
            assert several.stderr.count('in use by another training (process') == 2
        finally:
            holder.kill()
    assert main(file) == 0


def test_the_split_is_told_at_the_start(tmp_path, capsys):
    assert main(written(tiny_config(tmp_path, steps=1), tmp_path / 'run.yaml')) == 0
    said = capsys.readouterr().err
    assert 'split numeric: 4 episodes for training + 0 held out (2+0 of 2 tasks)' in said
    assert 'warning: nothing is held out of 2 of 2 tasks: open the green drawer; pick' in said


@pytest.mark.parametrize('change, message', [
    ({'data': {'branches': ['action', 'action']}}, 'name each branch once'),
    ({'data': {'store': '/nowhere'}}, 'no token store'),
    ({'data': {'tokenizer': '/nowhere'}}, 'no image tokenizer'),
    ({'data': {'batch_size': 100000}}, 'lower the batch size'),
    ({'model': {'num_heads': 3}}, 'multiple of 2 x num_heads'),
    ({'run': {'step': 3}}, "unknown key 'run.step'")])
def test_a_wrong_value_is_told_in_a_sentence(tmp_path, capsys, change, message):
    entries = asdict(tiny_config(tmp_path))
    for section, values in change.items():
        entries[section].update(values)
    (tmp_path / 'run.yaml').write_text(yaml.safe_dump(entries))
    assert main(['--config', str(tmp_path / 'run.yaml')]) == 1
    assert message in capsys.readouterr().err


AT_ITS_END = """
import atexit, runpy, sys
atexit.register(print, 'the interpreter ends')
sys.argv = ['train', '--config', '/nowhere']
runpy.run_module('worldvla_ros.training.train', run_name='__main__')
"""


@pytest.mark.parametrize('processes', [1, 2])
def test_one_of_several_processes_ends_without_the_end_of_the_interpreter(processes):
    """Pins a bug: a thread of gloo that still gave back a tensor then aborted the process."""
    done = subprocess.run([sys.executable, '-c', AT_ITS_END], cwd=ROOT, capture_output=True,
                          text=True, timeout=200, check=False,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT),
                               'WORLD_SIZE': str(processes)})
    assert done.returncode == 1 and '/nowhere' in done.stderr
    assert ('the interpreter ends' in done.stdout) == (processes == 1)


@pytest.mark.parametrize('processes, parallel, weighting', [
    (2, 'ddp', 'per_branch'), (2, 'fsdp', 'published'),
    pytest.param(4, 'ddp', 'per_branch', marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_learns(tmp_path, processes, parallel, weighting):
    """One sample of four is of the world, so the other processes lack that branch.

    The last step is done by one process alone, from the checkpoint of the others.
    """
    config = tiny_config(tmp_path, steps=4, world_share=0.25)
    config = replace(config, model=replace(config.model, dropout=0.0,
                                           activation_checkpointing=parallel == 'fsdp'),
                     loss=replace(config.loss, weighting=weighting, world_weight=0.5),
                     optimizer=replace(config.optimizer, schedule='constant'))
    assert main(written(config, tmp_path / 'one.yaml')) == 0
    several = replace(config, run=replace(config.run, output=str(tmp_path / 'several'), steps=3,
                                          parallel=parallel))
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node',
               str(processes), '-m', 'worldvla_ros.training.train',
               *written(several, tmp_path / 'several.yaml')]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200,
                          check=False, env={**os.environ, 'OMP_NUM_THREADS': '1',
                                            'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 0, done.stderr[-2000:]
    longer = replace(several, run=replace(several.run, steps=4))
    assert main(written(longer, tmp_path / 'several.yaml')) == 0
    logged = [[[float(row[value]) for value in ('total', 'world', 'grad_norm')]
               for row in read_metrics(tmp_path / name) if row['split'] == 'train']
              for name in ('run', 'several')]
    assert np.shape(logged[0]) == (4, 3) and np.isfinite(logged[0]).all()
    np.testing.assert_allclose(logged[0], logged[1], rtol=1e-4)

# SPDX-License-Identifier: Apache-2.0
"""A small plan of an ablation, and commands that only leave what the real ones would."""

import csv
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from training_runs import tiny_config
import yaml

from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_ros.training.run_folder import COLUMNS
from worldvla_sim.assets.pack import PACK_VERSION
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.policies import checkpoint_name
from worldvla_sim.results import Results


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

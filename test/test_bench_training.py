# SPDX-License-Identifier: Apache-2.0
"""The benchmark of training runs on a CPU, with made-up episodes, and says what steps take."""

import json
from pathlib import Path
import subprocess
import sys

from training_data import tiny_tokenizer

from worldvla_ros.config import load_yaml
from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.training.settings import TrainConfig

ROOT = Path(__file__).parents[1]
RECIPE = """
data: {{store: nowhere, tokenizer: {tokenizer}, batch_size: 8, world_share: 0.25, state: true,
       history_length: 1, length_multiple: 8}}
model: {{hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2, text_tokens: 300}}
run: {{output: {output}, steps: 5, loader_processes: 2}}
"""


def test_the_steps_of_a_variant_are_timed_and_nothing_is_left(tmp_path):
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(RECIPE.format(tokenizer=tmp_path / 'tokenizer', output=tmp_path / 'run'))
    subprocess.run([sys.executable, str(ROOT / 'benchmarks' / 'bench_training.py'), '--config',
                    str(recipe), '--made-up', '--device', 'cpu', '--steps', '3', '--variants',
                    'batch', '--json', str(tmp_path / 'figures.json')], check=True,
                   capture_output=True)
    report = json.loads((tmp_path / 'figures.json').read_text())
    assert report['asked'] == list(report['done']) == ['batch']
    assert report['machine']['date'] and '--variants batch' in report['machine']['command']
    rows = {row['name']: row['value'] for row in report['rows']}
    assert 0 < rows['batch: share of the matmul peak'] < 1
    assert rows['batch: samples per second'] * rows['batch: step, with its batches'] > 15999
    assert 0 < rows['batch: batch, made by one process'] < 1e3
    assert 'batch: aten::mm' in rows
    assert not (tmp_path / 'run').exists()


def test_variants_are_of_twice_the_batch_and_twice_the_width(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    from bench_training import VARIANTS
    recipe = load_yaml(ROOT / 'config' / 'train' / 'mini_gpu.yaml', TrainConfig)
    batch, wide = VARIANTS['batch'](recipe), VARIANTS['wide'](recipe)
    assert VARIANTS['recipe'](recipe) == recipe
    assert batch.data.batch_size == 512 and batch.model == recipe.model
    assert (wide.model.hidden_size, wide.model.intermediate_size) == (768, 1792)
    assert wide.model.hidden_size // wide.model.num_heads == 64 and wide.data == recipe.data

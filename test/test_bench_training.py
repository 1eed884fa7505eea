# SPDX-License-Identifier: Apache-2.0
"""The benchmark of training runs on a CPU, with made-up episodes, and says what a step takes."""

import json
from pathlib import Path
import subprocess
import sys

from training_data import tiny_tokenizer

from worldvla_ros.model.image_tokenizer import save_image_tokenizer

ROOT = Path(__file__).parents[1]
RECIPE = """
data: {{store: nowhere, tokenizer: {tokenizer}, batch_size: 8, world_share: 0.25, state: true,
       history_length: 1, length_multiple: 8}}
model: {{hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 2, text_tokens: 300}}
run: {{output: {output}, steps: 5, loader_processes: 2}}
"""


def test_a_step_is_timed_and_nothing_is_left(tmp_path):
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(RECIPE.format(tokenizer=tmp_path / 'tokenizer', output=tmp_path / 'run'))
    subprocess.run([sys.executable, str(ROOT / 'benchmarks' / 'bench_training.py'), '--config',
                    str(recipe), '--made-up', '--device', 'cpu', '--steps', '3', '--json',
                    str(tmp_path / 'figures.json')], check=True, capture_output=True)
    rows = {row['name']: row['value']
            for row in json.loads((tmp_path / 'figures.json').read_text())['rows']}
    assert 0 < rows['share of the matmul peak'] < 1
    assert rows['samples per second'] * rows['step, with its batches'] > 7999
    assert 0 < rows['batch, made by one process'] < 1e3
    assert 'aten::mm' in rows
    assert not (tmp_path / 'run').exists()

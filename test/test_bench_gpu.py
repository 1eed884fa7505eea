# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark runs from end to end on a CPU, and its reference is the public decoding."""

import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import action_prompt, tiny_model
import torch

from worldvla_ros.model.generate import generate_free
from worldvla_ros.model.transformer import TransformerConfig

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
PARTS = ('chunk', 'exactness', 'frame', 'encode', 'policy', 'fp8', 'profile')


@pytest.fixture
def benchmarks(monkeypatch):
    """Let a test import the modules beside the benchmark."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_all_parts_but_the_reference_run_small(tmp_path):
    target = tmp_path / 'bench.json'
    environment = {**os.environ, 'OMP_NUM_THREADS': '1',
                   'PYTHONPATH': os.pathsep.join([str(BENCHMARKS.parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, BENCHMARKS / 'bench_gpu.py', '--small', '--json', target, '--parts',
         *PARTS], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(target.read_text())
    rows = {(row['part'], row['name']): row['value'] for row in report['rows']}
    assert set(report['parts']) == set(PARTS) == {part for part, _ in rows}
    assert rows['chunk', '64 px: graphs captured after warm-up'] == 0
    assert rows['exactness', 'actions with a flip, engine against plain passes'] == 0
    assert rows['frame', '64 px: 5 % of codes new: codes as without draft'] == 1
    assert rows['frame', '64 px: 5 % of codes new: accepted codes per pass'] > 2
    assert 'torch' in report['machine'] and '--small' in report['machine']['command']
    table = target.with_suffix('.txt').read_text()
    assert all(name in table for _, name in rows)


def test_the_floors_are_those_of_the_projects_notes(benchmarks):
    import roofline
    card, config = roofline.H200, TransformerConfig()
    floors = [roofline.chunk_ms(card, config, prompt, K) for prompt, K in (
        (584, 5), (584, 10), (2152, 5), (2152, 10))]
    assert floors == pytest.approx([29.0, 29.1, 57.3, 57.4], abs=0.1)
    assert roofline.chunk_ms(card, config, 584, 10, cached=308) == pytest.approx(23.3, abs=0.8)


@pytest.mark.slow
def test_transformers_under_the_mask_says_what_our_public_loop_says(benchmarks):
    pytest.importorskip('transformers')
    from transformers_reference import reference_chunk, reference_of
    rng = np.random.default_rng(0)
    model = tiny_model(seed=5)
    reference = reference_of(model)
    for _ in range(3):
        prompt = action_prompt(rng, 1, (1, 1)).tolist()
        expected = generate_free(model, prompt, 12)
        torch.testing.assert_close(reference_chunk(reference, prompt, 12), expected)

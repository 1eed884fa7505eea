# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark runs from end to end on a CPU, and its reference is the public decoding."""

from argparse import Namespace
from dataclasses import replace
import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest
from tiny_models import action_prompt, tiny_model
import torch

from worldvla_ros.model.decoded import DecodedChunk
from worldvla_ros.model.generate import generate_free
from worldvla_ros.model.transformer import TransformerConfig
from worldvla_ros.model.vqgan import ImageTokenizerConfig
from worldvla_ros.tokens.vocab import Vocabulary

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
PARTS = ('chunk', 'exactness', 'frame', 'encode', 'policy', 'drafts', 'fp8', 'profile')


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
    assert {part for part, _ in rows} == set(PARTS)
    assert report['asked'] == list(report['done']) and len(report['asked']) == len(PARTS)
    assert rows['chunk', '64 px: graphs captured after warm-up'] == 0
    assert rows['chunk', '64 px: chunks in which the host waited for the GPU'] == 0
    assert rows['frame', '64 px: frames per second with 14.2 codes per pass, to pixels and back']
    assert 1 < rows['drafts', '64 px: drafted chunk, passes of random weights'] <= 7
    assert rows['exactness', 'actions with a flip, 64 px, engine against plain passes'] == 0
    assert rows['frame', '64 px: 5% of codes new, anywhere, frames that differ from those without '
                'draft'] == 0
    assert rows['frame', '64 px: 5% of codes new, anywhere, codes accepted per pass'] > 2
    assert rows['frame', '64 px: changes of real frames, codes accepted per pass'] > 1
    assert all(row['K'] == 5 for row in report['rows'] if row['part'] in ('chunk', 'policy'))
    assert {'torch', 'transformers', 'triton', 'commit', 'date'} < set(report['machine'])
    assert '--small' in report['machine']['command']
    table = target.with_suffix('.txt').read_text()
    assert all(name in table for _, name in rows)


@pytest.fixture
def bench(benchmarks):
    """Return the small bench."""
    from measuring import Bench
    return Bench(Namespace(small=True, slow_seconds=1.0))


def test_a_part_that_fails_is_a_row_and_the_next_one_runs(bench, monkeypatch, tmp_path, capsys):
    import bench_gpu
    from report import exit_status, row

    def broken(bench, size, K):
        raise torch.OutOfMemoryError('CUDA out of memory.\nMore about it')
    monkeypatch.setitem(bench_gpu.OF_CHUNKS, 'chunk', broken)
    monkeypatch.setitem(bench_gpu.OF_FRAMES, 'encode', lambda bench, size: [row('fine', 1, 'ms')])
    todo = bench_gpu.jobs(['chunk', 'encode'], [64], [5, 10])
    rows = bench_gpu.run(todo, bench, tmp_path / 'bench.json')
    assert [line['name'] for line in rows] == [
        'chunk, 64 px, K=5: failed: OutOfMemoryError: CUDA out of memory.',
        'chunk, 64 px, K=10: failed: OutOfMemoryError: CUDA out of memory.', 'fine']
    assert exit_status(rows) == 1 and exit_status(rows[2:]) == 0
    assert 'More about it' in capsys.readouterr().err
    saved = json.loads((tmp_path / 'bench.json').read_text())['rows']
    assert 'Traceback' in saved[0]['failed'] and 'More about it' in saved[0]['failed']
    assert 'K=10: failed' in (tmp_path / 'bench.txt').read_text()


def test_the_older_frame_ahead_is_not_padded_to_a_prompt_of_two(bench):
    """Pins a bug: 308 rows were timed as 592, which the policy has its own graph for."""
    from measuring import image_length
    prompt, = bench.prompts(64, 1)
    older = prompt[:-1 - image_length(64)]
    assert len(older) <= bench.engine(64, 5).prefill(older) < len(older) + 16


def test_the_policy_is_timed_with_the_published_vocabulary(benchmarks):
    """Pins a bug: the ids of its text were image codes there, and every such job failed."""
    from gpu_pixels import policy
    from measuring import TINY, TINY_IMAGES, Bench
    bench = Bench(Namespace(small=True, slow_seconds=1.0))
    bench.config = replace(TINY, vocabulary=Vocabulary())
    bench.image_config = replace(TINY_IMAGES, n_embed=Vocabulary().num_codes)
    assert all(line['value'] > 0 for line in policy(bench, 64, 5))


def test_rows_of_a_part_that_is_interrupted_are_in_the_file(bench, monkeypatch, tmp_path):
    import bench_gpu
    from report import row

    def measure(bench, size):
        yield row('first', 1, 'ms')
        raise KeyboardInterrupt
    monkeypatch.setitem(bench_gpu.OF_FRAMES, 'frame', measure)
    with pytest.raises(KeyboardInterrupt):
        bench_gpu.run(bench_gpu.jobs(['frame'], [64], []), bench, tmp_path / 'bench.json')
    saved = json.loads((tmp_path / 'bench.json').read_text())
    assert [line['name'] for line in saved['rows']] == ['first'] and saved['done'] == {}


def test_what_was_measured_before_a_kill_is_in_the_file(bench, monkeypatch, tmp_path):
    import bench_gpu
    from report import row

    def measure(bench, size, K):
        if K == 10:
            raise KeyboardInterrupt
        return [row('one', 1, 'ms', runs=7)]
    monkeypatch.setitem(bench_gpu.OF_CHUNKS, 'chunk', measure)
    with pytest.raises(KeyboardInterrupt):
        bench_gpu.run(bench_gpu.jobs(['chunk'], [64], [5, 10]), bench, tmp_path / 'bench.json')
    saved = json.loads((tmp_path / 'bench.json').read_text())
    assert [line['K'] for line in saved['rows']] == [5]
    assert (saved['asked'], list(saved['done'])) == (
        ['chunk, 64 px, K=5', 'chunk, 64 px, K=10'], ['chunk, 64 px, K=5'])
    assert 'n=7' in (tmp_path / 'bench.txt').read_text()


def test_a_part_may_be_asked_for_at_one_size_and_horizon(benchmarks):
    from bench_gpu import jobs
    listed = jobs(['chunk:512', 'fp8:256:10', 'encode'], [256, 512], [10, 5])
    assert [str(job) for job in listed] == [
        'chunk, 512 px, K=10', 'chunk, 512 px, K=5', 'fp8, 256 px, K=10', 'encode, 256 px',
        'encode, 512 px']


def test_slow_runs_end_with_their_time(bench):
    bench.slow_seconds = 0
    assert len(bench.slow_times(lambda i: None, 100)) == 3
    bench.slow_seconds = 60
    assert len(bench.slow_times(lambda i: None, 100)) == 100


def test_clocks_count_where_the_gpu_was_at_work(benchmarks):
    from measuring import Clocks
    said = ('100, 1890, 2619, 647.91\n0, 345, 2619, 70.10\n98, 1980, 2619, 600.00\n'
            '97, [N/A], 2619, 600\n99, 19')
    assert Clocks.under_load(said).tolist() == [[100, 1890, 2619, 647.91], [98, 1980, 2619, 600]]
    with Clocks(torch.device('cpu')) as clocks:
        pass
    assert clocks.summary() == {}


def test_flips_tell_how_far_the_bins_are_apart(benchmarks):
    from measuring import flips
    margin = torch.tensor([[.5, .25, .5], [.5, .5, .5]])
    one, other = (DecodedChunk(
        torch.tensor(ids), margin, margin, margin, None, 0, 0, 0) for ids in (
        [[7, 8, 9], [1, 2, 3]], [[7, 11, 2], [1, 2, 3]]))
    assert [line['value'] for line in flips('name', [one], [other], .3)] == [.5, .25, 3]


def test_drafts_differ_from_the_frame_as_real_frames_do(benchmarks):
    from change_masks import change_masks
    masks = change_masks(16)
    assert masks.shape == (64, 16, 16)
    assert .25 < masks.mean() < .4
    beside = masks[:, :, 1:][masks[:, :, :-1]].mean()
    assert beside > 1.5 * masks.mean()  # in clusters


def test_the_floors_are_those_of_the_projects_notes(benchmarks):
    import roofline
    card, config = roofline.H200['dense'], TransformerConfig()
    floors = [[roofline.chunk_ms(one, config, prompt, K) for prompt, K in (
        (584, 5), (584, 10), (2152, 5), (2152, 10))] for one in roofline.H200.values()]
    assert floors[0] == pytest.approx([29.0, 29.1, 57.3, 57.4], abs=0.1)
    assert floors[1] == pytest.approx([15.1, 15.2, 29.8, 29.9], abs=0.1)
    assert roofline.chunk_ms(card, config, 584, 10, cached=308) == pytest.approx(23.3, abs=0.8)
    images = ImageTokenizerConfig()
    assert roofline.encode_ms(card, images, 256) == pytest.approx(.35, abs=0.005)
    assert roofline.encode_ms(card, images, 512) == pytest.approx(1.4, abs=0.005)
    assert roofline.decode_ms(card, images, 256) == pytest.approx(2 * .32, abs=0.01)


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

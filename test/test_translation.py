# SPDX-License-Identifier: Apache-2.0
"""A checkpoint goes on with another image tokenizer: its rows follow the codes."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import attentive_model
import torch
from training_data import IMAGE_SIZE, INSTRUCTIONS, episode, tiny_tokenizer
from training_runs import TINY, tiny_config

from worldvla_ros.errors import CheckpointError
from worldvla_ros.model.image_tokenizer import save_image_tokenizer, tokenizer_fingerprint
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.store_writing import write_store
from worldvla_ros.training.train import train
from worldvla_ros.training.translation import translate_codes

ORDER = np.random.default_rng(0).permutation(64)


def reordered_tokenizer():
    """Return tiny_tokenizer with its codes in another order: code i is the old ORDER[i]."""
    tokenizer = tiny_tokenizer()
    tokenizer.quantize.embedding.weight.copy_(tokenizer.quantize.embedding.weight[ORDER])
    return tokenizer


def demonstrations(*numbers):
    return [episode(number, 12, INSTRUCTIONS[number % 2], f'task{number % 2}')
            for number in numbers]


@pytest.fixture
def stores(tmp_path):
    """Two stores that share two of their three demonstrations, of the old and the new codes."""
    return (write_store(tmp_path / 'before', demonstrations(0, 1, 2), tiny_tokenizer(),
                        IMAGE_SIZE),
            write_store(tmp_path / 'after', demonstrations(1, 2, 3), reordered_tokenizer(),
                        IMAGE_SIZE))


@pytest.mark.parametrize('tied', [False, True])
def test_every_code_that_occurs_takes_the_rows_of_the_old_code(stores, tied):
    before, after = stores
    model = attentive_model(300)
    if tied:
        model = Transformer(replace(model.config, tie_word_embeddings=True))
    codes = model.config.vocabulary.codes
    tables = (model.model.embed_tokens.weight, model.lm_head.weight)
    known = [table.detach().clone() for table in tables]
    translate_codes(model, before, after)
    shared = np.unique(np.concatenate([after.codes[one.steps] for one in after.episodes[:2]]))
    missing = np.setdiff1d(np.arange(64), shared)
    assert len(shared) > 10 and len(missing)
    for table, old in zip(tables, known, strict=True):
        rows, old_rows = (one[codes.start:codes.stop] for one in (table, old))
        torch.testing.assert_close(rows[shared], old_rows[ORDER[shared]])
        torch.testing.assert_close(rows[missing], old_rows.mean(0).expand(len(missing), -1))
        torch.testing.assert_close(table[:codes.start], old[:codes.start], rtol=0, atol=0)
        torch.testing.assert_close(table[codes.stop:], old[codes.stop:], rtol=0, atol=0)


def test_a_code_that_stands_for_several_takes_their_mean(tmp_path, stores):
    before, after = stores
    model = attentive_model(300)
    start = model.config.vocabulary.code_start
    known = model.lm_head.weight.detach().clone()
    after.codes = np.zeros_like(after.codes)
    translate_codes(model, before, after)
    steps = [one.steps for one in before.episodes if one.name != 'demo_0']
    old = np.concatenate([before.codes[one] for one in steps]).ravel().astype(int)
    torch.testing.assert_close(model.lm_head.weight[start], known[start + old].mean(0))


def test_stores_without_a_common_demonstration_are_refused(tmp_path, stores):
    other = write_store(tmp_path / 'other', demonstrations(7), reordered_tokenizer(), IMAGE_SIZE)
    with pytest.raises(DatasetError, match=r'init_store has none of the 1 demonstrations'):
        translate_codes(attentive_model(300), stores[0], other)


def test_training_goes_on_with_another_image_tokenizer(tmp_path):
    config = tiny_config(tmp_path, steps=1)
    first = train(config)
    save_image_tokenizer(reordered_tokenizer(), tmp_path / 'new')
    write_store(tmp_path / 'after', demonstrations(0, 1, 2, 3), reordered_tokenizer(), IMAGE_SIZE)
    there = replace(
        config, data=replace(config.data, store=str(tmp_path / 'after'),
                             tokenizer=str(tmp_path / 'new')),
        model=replace(TINY, init_from=str(first)),
        run=replace(config.run, output=str(tmp_path / 'second')))
    with pytest.raises(CheckpointError, match=r'model\.init_store'):
        train(there)
    made = train(replace(there, model=replace(there.model, init_store=config.data.store)))
    tokenizer = Pretrained.load(made).image_tokenizer
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(reordered_tokenizer())

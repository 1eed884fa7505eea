# SPDX-License-Identifier: Apache-2.0
"""Small runs for the tests of training, and what they leave."""

from dataclasses import replace

from training_data import small_store, tiny_tokenizer, write_store

from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.policy.policy import WorldVLAPolicy
from worldvla_ros.training.settings import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)
from worldvla_ros.training.train import train

TINY = ModelConfig(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2,
                   text_tokens=300, dropout=0.1)


def tiny_config(folder, steps=6, output='run', **data):
    store, tokenizer = folder / 'store', folder / 'tokenizer'
    if not store.exists():
        small_store(folder, wrist=data.get('wrist', False))
    data = {'split': 'numeric', **data}  # of few episodes a hash may hold out any, or none
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


def memorised(folder, demos, **data):
    """Train a tiny policy on these demonstrations alone until it knows them by heart."""
    save_image_tokenizer(tiny_tokenizer(), folder / 'tokenizer')
    write_store(folder / 'store', demos, tiny_tokenizer(), 64)
    config = tiny_config(folder, steps=120, branches=('action',), **data)
    config = replace(
        config, data=replace(config.data, batch_size=12),
        model=replace(TINY, hidden_size=64, intermediate_size=128, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=10, weight_decay=0.0),
        run=replace(config.run, save_every=120, log_every=10))
    return WorldVLAPolicy.from_pretrained(train(config), dtype='float32')

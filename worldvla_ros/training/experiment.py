# SPDX-License-Identifier: Apache-2.0
"""Put a run together: tokenizers, vocabulary, network and samples that fit each other."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
import torch

from worldvla_ros.datatypes import ACTION_AXES
from worldvla_ros.errors import CheckpointError
from worldvla_ros.model.image_tokenizer import (
    ImageTokenizer,
    load_image_tokenizer,
    tokenizer_fingerprint,
)
from worldvla_ros.model.transformer import Transformer, TransformerConfig
from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.tokens.action_tokenizer import LIBERO_MAXIMUM, LIBERO_MINIMUM
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.tokens.vocab import Vocabulary
from worldvla_ros.training.batches import SampleTable
from worldvla_ros.training.earlier_splits import leak_warning, with_earlier_splits
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.initial_weights import (
    embed_action_bins,
    embed_codebook,
    embed_image_places,
    embed_state_bins,
    initialise,
    with_image_places,
    with_state_tokens,
)
from worldvla_ros.training.label_checks import MOST_CLIPPED, require_labels, shares_outside
from worldvla_ros.training.run_folder import load_saved
from worldvla_ros.training.samples import VIDEO_PROMPT, SampleBuilder
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.splits import SplitCounts
from worldvla_ros.training.store import StoredEpisode, TokenStore
from worldvla_ros.training.translation import translate_codes


@dataclass(frozen=True, eq=False)
class Experiment:
    """What a trainer works with."""

    config: TrainConfig
    pretrained: Pretrained
    train: SampleTable
    held_out: SampleTable | None  # None: too little data to hold any out
    not_measured: str  # why some or all is not measured on held-out episodes that there are
    data: str  # fingerprint of the store
    clipped_labels: NDArray[np.float64]  # (7,) share of the training labels out of range
    clipped_states: NDArray[np.float64]  # (7,) likewise of the arm's states; (0,) if not read
    counts: SplitCounts  # of the episodes

    @property
    def split_report(self) -> str:
        """Say how many episodes are held out, and whether the weights may have seen them."""
        warning = leak_warning(self.config.data.split, self.config.data.earlier_splits)
        left = 'nothing' if self.held_out is None else 'not everything'
        unmeasured = (f'warning: {left} is measured on the held-out episodes: '
                      f'{self.not_measured}') if self.not_measured else ''
        return '\n'.join(filter(None, (self.counts.in_words(), warning, unmeasured)))

    @property
    def label_report(self) -> str:
        """Say how many labels are learned; empty where all are."""
        share = self.train.learned_share
        if not share < 1.0:
            return ''
        return (f'{share:.1%} of the action labels are learned: in the others, what was executed '
                'before them in their chunk is not what the expert would have done '
                '(data.label_tolerance)')

    @property
    def range_report(self) -> str:
        """Say in one line how many labels saturate on each axis, and of the state at most."""
        shares = ', '.join(f'{axis} {share:.1%}' for axis, share in
                           zip(ACTION_AXES, self.clipped_labels, strict=True))
        warning = ('' if self.clipped_labels.max() <= MOST_CLIPPED else
                   'warning: these actions are not learned as they are; ')
        states = '' if self.clipped_states.max(initial=0.0) <= MOST_CLIPPED else (
            f"; warning: up to {self.clipped_states.max():.1%} of a value of the arm's state, too")
        return f'{warning}action labels outside of the range of the tokens: {shares}{states}'


def build_experiment(config: TrainConfig, resume_from: Path | None = None) -> Experiment:
    """Load or make all parts of a run.

    :param resume_from: checkpoint of this run whose weights, text tokenizer and settings go on.
    Raises DatasetError for a store that is empty, of another tokenizer or without a sample of a
    branch, ConfigError for an option that a new run has no labels for, CheckpointError for weights
    of another vocabulary, TrainingError for a damaged checkpoint of this run.
    """
    image_tokenizer = load_image_tokenizer(config.data.tokenizer)
    store = TokenStore.open(config.data.store, tokenizer_fingerprint(image_tokenizer))
    train, held_out = store.split(config.data.split)
    if config.data.state:
        store.require_states()
    if resume_from is None:  # one that began before this was refused may go on
        require_labels(config, store, train)
    source = str(resume_from or config.model.init_from)
    config = with_earlier_splits(config, source)
    if source:
        given = (load_saved(resume_from) if resume_from is not None
                 else Pretrained.load(source, dtype='float32'))
        pretrained = _carried_over(given, source, config, store, train, image_tokenizer)
    else:
        pretrained = _new(config, store, train, image_tokenizer)
    samples = SampleBuilder(pretrained.prompts, config.data.history_length, config.data.horizon,
                            config.data.world_rounds,
                            config.data.world_stride or pretrained.settings.world_stride,
                            config.data.short_chunks)

    def table(episodes: list[StoredEpisode], asked_repeats: int = 1) -> SampleTable:
        return SampleTable(store, episodes, config.data.branches, samples,
                           pretrained.action_tokenizer, pretrained.state_tokenizer,
                           config.data.wrist, config.data.label_tolerance,
                           config.data.whole_chunks, asked_repeats)
    train_table = table(train, config.data.asked_repeats)
    if train_table.lacking:
        raise DatasetError(f'{train_table.lacking}; or take the branch out of data.branches')
    counts = SplitCounts.of(config.data.split, *([one.instruction for one in side]
                                                 for side in (train, held_out)))
    return Experiment(config, pretrained, train_table, *_measurable(held_out, table),
                      store.header.data, *shares_outside(store, train, pretrained.settings),
                      counts)


def _measurable(held_out: list[StoredEpisode], table: Callable[[list[StoredEpisode]], SampleTable]
                ) -> tuple[SampleTable | None, str]:
    """Return the samples of held-out episodes, and why some or all cannot be measured."""
    if not held_out:
        return None, ''
    try:
        found = table(held_out)
    except DatasetError as error:
        return None, str(error)
    return found, found.lacking


def _image_grid(store: TokenStore) -> tuple[int, int]:
    rows, columns = store.codes.shape[1:]
    return rows, columns


def _new(config: TrainConfig, store: TokenStore, train: list[StoredEpisode],
         image_tokenizer: ImageTokenizer) -> Pretrained:
    settings = _settings(config, store, train)
    instructions = sorted({episode.instruction for episode in store.episodes})
    sentences = [settings.action_prompt.format(instruction=text) for text in instructions]
    text_tokenizer = TextTokenizer.train([*sentences, settings.world_prompt, VIDEO_PROMPT],
                                         config.model.text_tokens)
    shape = config.model
    vocabulary = Vocabulary.compact(text_tokenizer.num_tokens, store.header.num_codes)
    if config.data.state:
        vocabulary = vocabulary.with_state()
    torch.manual_seed(config.run.seed)
    model = Transformer(TransformerConfig(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size,
        num_layers=shape.num_layers, num_heads=shape.num_heads,
        tie_word_embeddings=shape.tie_word_embeddings, vocabulary=vocabulary,
        image_grid=_image_grid(store) if shape.image_places else None))
    initialise(model)
    if shape.image_places:
        embed_image_places(model)
    if shape.image_embeddings == 'codebook':
        embed_codebook(model, image_tokenizer.quantize.embedding.weight)
    embed_action_bins(model)
    if config.data.state:
        embed_state_bins(model)
    return Pretrained(model, image_tokenizer, text_tokenizer, settings)


def _carried_over(given: Pretrained, folder: str, config: TrainConfig, store: TokenStore,
                  train: list[StoredEpisode], image_tokenizer: ImageTokenizer) -> Pretrained:
    """Fit a checkpoint to a run; its shape, action range and prompts go on, history may differ.

    One that has not read the state of the arm begins to where the configuration says so.
    """
    have = (given.model.config.vocabulary.num_codes, given.settings.image_size)
    if have != (store.header.num_codes, store.header.image_size):
        raise CheckpointError(
            f'{folder} has {have[0]} image codes at {have[1]} px, the store {config.data.store} '
            f'has {store.header.num_codes} at {store.header.image_size} px; give a checkpoint '
            'and a store of the same image tokenizer')
    tokenizer = tokenizer_fingerprint(given.image_tokenizer)
    if tokenizer != store.header.tokenizer:
        if not config.model.init_store:
            raise CheckpointError(
                f'{folder} has the image tokenizer {tokenizer}, the store {config.data.store} '
                f'was made with {store.header.tokenizer}; make the store again with the '
                'tokenizer of the checkpoint, or give model.init_store to carry the checkpoint '
                'over to this one')
        translate_codes(given.model, TokenStore.open(config.model.init_store, tokenizer), store)
        given = replace(given, image_tokenizer=image_tokenizer)
    low, high = given.settings.state_minimum, given.settings.state_maximum
    model = given.model
    torch.manual_seed(config.run.seed)  # of the weights that it does not have yet
    if not config.data.state:
        low = high = None
    elif low is None:
        model = with_state_tokens(model)
        low, high = _as_tuples(store.state_range(train))
    if config.model.image_places and model.config.image_grid is None:
        model = with_image_places(model, _image_grid(store))
    model.requires_grad_(True)
    return replace(given, model=model, settings=replace(
        given.settings, name=config.run.name, trained=True, notes=_notes(store),
        image_tokenizer=store.header.tokenizer,
        state_minimum=low, state_maximum=high,
        history_length=config.data.history_length, horizon=config.data.horizon,
        reads_wrist=config.data.wrist, bin_choice=config.model.bin_choice,
        chunk_mask=config.data.chunk_mask,
        world_stride=_world_stride(config, given.settings.world_stride)))


def _world_stride(config: TrainConfig, before: int) -> int:
    """Return the stride of the world model after this run, which may teach it nothing."""
    return (config.data.world_stride or before) if 'world' in config.data.branches else before


def _settings(config: TrainConfig, store: TokenStore, train: list[StoredEpisode]
              ) -> PolicySettings:
    low, high = (_as_tuples(store.action_range(train, config.data.horizon))
                 if config.data.action_range == 'data' else (LIBERO_MINIMUM, LIBERO_MAXIMUM))
    state_low, state_high = (_as_tuples(store.state_range(train)) if config.data.state
                             else (None, None))
    return PolicySettings(
        name=config.run.name, trained=True, image_size=store.header.image_size,
        image_tokenizer=store.header.tokenizer,
        state_minimum=state_low, state_maximum=state_high,
        history_length=config.data.history_length, horizon=config.data.horizon,
        reads_wrist=config.data.wrist, chunk_mask=config.data.chunk_mask,
        bin_choice=config.model.bin_choice, world_stride=_world_stride(config, 1),
        action_minimum=low, action_maximum=high, notes=_notes(store))


def _as_tuples(bounds: tuple[NDArray[np.float64], NDArray[np.float64]]
               ) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low, high = bounds
    return tuple(low.tolist()), tuple(high.tolist())


def _notes(store: TokenStore) -> str:
    return (f'trained by worldvla_ros on {len(store.episodes)} demonstrations, '
            f'{len(store.codes)} frames, data {store.header.data}')

# SPDX-License-Identifier: Apache-2.0
"""States become tokens by the bins of actions, of a vocabulary that has room for them."""

import json

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from published_text import PublishedText
import pytest

from worldvla_ros.errors import ConfigError, StateError, TokenError
from worldvla_ros.tokens.quantization import normalize, quantize
from worldvla_ros.tokens.sequence import PromptBuilder, state_block
from worldvla_ros.tokens.state_tokenizer import StateTokenizer
from worldvla_ros.tokens.vocab import Vocabulary

MINIMUM = np.array([0.2, -0.5, 0.0, -1.0, -1.0, -2.0, 0.0])
MAXIMUM = np.array([0.8, 0.5, 0.6, 1.0, 1.0, 2.0, 0.08])
RELEASED = Vocabulary()
COMPACT = Vocabulary.compact(300, 512)
unit = st.lists(st.floats(0, 1), min_size=7, max_size=7).map(np.array)


# --- bins --------------------------------------------------------------------------------------


@given(unit)
def test_bins_are_those_whose_edges_enclose_the_value(fraction):
    values = MINIMUM + fraction * (MAXIMUM - MINIMUM)
    bins = quantize(values, MINIMUM, MAXIMUM, 256)
    edges = np.linspace(-1, 1, 256)
    normalized = normalize(values, MINIMUM, MAXIMUM)
    assert (edges[bins] <= normalized).all()
    assert (normalized < np.append(edges, np.inf)[bins + 1]).all()


def test_values_out_of_range_saturate():
    assert set(quantize(MINIMUM - 9, MINIMUM, MAXIMUM, 256)) == {0}
    assert set(quantize(MAXIMUM + 9, MINIMUM, MAXIMUM, 256)) == {255}


# --- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize('vocabulary', [RELEASED, COMPACT.with_state()])
def test_states_are_tokens_of_the_state_s_own_bins_in_order_of_value(vocabulary):
    tokenizer = StateTokenizer(MINIMUM, MAXIMUM, vocabulary)
    steps = np.linspace(-0.1, 1.1, 50)[:, None] * (MAXIMUM - MINIMUM) + MINIMUM
    ids = tokenizer.encode(steps)
    assert ids.shape == (50, 7) and ids.dtype == np.int64
    assert (np.diff(ids, axis=0) >= 0).all()
    assert {ids.min(), ids.max()} == {vocabulary.state_bins.start, vocabulary.state_bins.stop - 1}
    np.testing.assert_array_equal(tokenizer.encode(steps[7]), ids[7])


@pytest.mark.parametrize('state', [np.zeros(6), np.zeros(8), np.full(7, np.nan)])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(StateError, match='7 numbers'):
        StateTokenizer(MINIMUM, MAXIMUM, RELEASED).encode(state)


@pytest.mark.parametrize('low, high, words', [
    (MINIMUM[:6], MAXIMUM, 'state minimum must be 7'),
    (MINIMUM, MAXIMUM * np.nan, 'state maximum must be 7'),
    (MINIMUM, MINIMUM, 'below its maximum')])
def test_ranges_that_are_none_are_refused(low, high, words):
    with pytest.raises(ConfigError, match=words):
        StateTokenizer(low, high, RELEASED)


# --- vocabulary --------------------------------------------------------------------------------


def test_state_tokens_go_behind_all_others_and_change_none_of_them():
    extended = COMPACT.with_state()
    assert not COMPACT.has_state and COMPACT.state_bins == range(0)
    assert extended.has_state and extended.size == COMPACT.size + 2 + COMPACT.num_bins
    assert (extended.state_begin, extended.state_end) == (COMPACT.size, COMPACT.size + 1)
    assert extended.state_bins == range(COMPACT.size + 2, extended.size)
    assert (extended.bins, extended.codes) == (COMPACT.bins, COMPACT.codes)
    assert extended.with_state() is extended


def test_released_checkpoints_have_the_tokens_of_rynnvla():
    assert (RELEASED.state_begin, RELEASED.state_end) == (15504, 16004)
    assert RELEASED.state_bins == range(15506, 15762)
    assert RELEASED.with_state() is RELEASED


@pytest.mark.parametrize('vocabulary', [RELEASED, COMPACT, COMPACT.with_state()])
def test_the_layout_survives_the_configuration_file(vocabulary):
    entries = json.loads(json.dumps(vocabulary.to_dict()))
    assert Vocabulary.from_dict(entries) == vocabulary


def test_a_configuration_that_is_older_than_the_state_has_no_tokens_for_it():
    entries = {name: value for name, value in COMPACT.to_dict().items()
               if not name.startswith('state')}
    assert Vocabulary.from_dict(entries) == COMPACT


# --- prompts -----------------------------------------------------------------------------------


def test_a_state_block_has_its_delimiters():
    vocabulary = COMPACT.with_state()
    ids = np.arange(7) + vocabulary.state_bins.start
    assert state_block(ids, vocabulary).tolist() == [
        vocabulary.state_begin, *ids, vocabulary.state_end]


@pytest.mark.parametrize('count, vocabulary', [(6, RELEASED), (8, RELEASED), (7, COMPACT)])
def test_what_makes_no_state_block_is_refused(count, vocabulary):
    with pytest.raises(TokenError, match='7 tokens of a vocabulary that has them'):
        state_block(np.arange(count), vocabulary)


def test_the_state_is_last_in_the_prompt_so_that_older_frames_are_still_a_prefix():
    prompts = PromptBuilder(PublishedText.train(['What action should the robot take?'], 300),
                            RELEASED)
    images = [np.random.default_rng(i).integers(0, 8192, (4, 4)) for i in range(2)]
    ids = StateTokenizer(MINIMUM, MAXIMUM, RELEASED).encode(MINIMUM)
    plain = prompts.action('lift', images).tolist()
    prompt = prompts.action('lift', images, ids).tolist()
    assert prompt == [*plain[:-1], *state_block(ids, RELEASED), RELEASED.separator]
    prefix = prompts.action_prefix('lift', images).tolist()
    assert prompt[:len(prefix)] == prefix

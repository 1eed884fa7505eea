# SPDX-License-Identifier: Apache-2.0
"""Quantizing and de-quantizing are an inverse pair with the published edge cases."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from worldvla_ros.errors import ConfigError, TokenError
from worldvla_ros.tokens.action_tokenizer import LIBERO_MAXIMUM, LIBERO_MINIMUM, ActionTokenizer
from worldvla_ros.tokens.vocab import Vocabulary

TOKENIZER = ActionTokenizer(LIBERO_MINIMUM, LIBERO_MAXIMUM)
MINIMUM, MAXIMUM = np.array(LIBERO_MINIMUM), np.array(LIBERO_MAXIMUM)
unit = st.lists(st.floats(0, 1), min_size=7, max_size=7).map(np.array)


@given(unit)
def test_an_action_comes_back_within_half_a_bin(fraction):
    action = MINIMUM + fraction * (MAXIMUM - MINIMUM)
    error = np.abs(TOKENIZER.decode(TOKENIZER.encode(action)) - action)
    assert (error <= TOKENIZER.bin_width / 2 + 1e-7).all()


@pytest.mark.parametrize('num_bins', [2, 9, 255])
def test_so_does_it_with_any_number_of_bins(num_bins):
    """Pins a bug: of an odd number one edge was missing, and the bins beside it were wider."""
    tokenizer = ActionTokenizer(LIBERO_MINIMUM, LIBERO_MAXIMUM,
                                replace(Vocabulary(), num_bins=num_bins))
    for action in np.linspace(MINIMUM, MAXIMUM, 500):
        error = np.abs(tokenizer.decode(tokenizer.encode(action)) - action)
        assert (error <= (MAXIMUM - MINIMUM) / (num_bins - 1) / 2 + 1e-7).all()


@given(st.lists(st.integers(10006, 10260), min_size=7, max_size=7))
def test_a_token_comes_back_exactly(ids):
    np.testing.assert_array_equal(TOKENIZER.encode(TOKENIZER.decode(ids)), ids)


def test_published_edge_cases():
    assert set(TOKENIZER.encode(MINIMUM)) == {10006}
    assert set(TOKENIZER.encode(MAXIMUM)) == {10260}  # the range has 1e-8 more than its span
    assert set(TOKENIZER.encode(MAXIMUM + 0.01)) == {10261}
    assert set(TOKENIZER.encode(MINIMUM - 9)) == {10006}
    zero = TOKENIZER.encode(np.zeros(7))
    assert zero.tolist() == [10133, 10133, 10133, 10124, 10133, 10133, 10133]


def test_infinite_values_saturate_and_nan_is_refused():
    action = np.array([np.inf, -np.inf, 0, 0, 0, 0, 0])
    assert TOKENIZER.encode(action)[:2].tolist() == [10261, 10006]
    with pytest.raises(TokenError, match='NaN'):
        TOKENIZER.encode(np.full(7, np.nan))


def test_the_last_two_bins_share_a_centre():
    np.testing.assert_array_equal(TOKENIZER.decode([10260] * 7), TOKENIZER.decode([10261] * 7))


@pytest.mark.parametrize('foreign', [10004, 10005, 10262, 15004, 0])
def test_foreign_tokens_are_refused_by_name(foreign):
    with pytest.raises(TokenError, match=f'token {foreign} is no action bin'):
        TOKENIZER.decode([10006] * 6 + [foreign])


def test_shapes_are_kept_and_other_widths_refused():
    actions = np.zeros((3, 5, 7))
    assert TOKENIZER.encode(actions).shape == TOKENIZER.decode(TOKENIZER.encode(actions)).shape
    for width in (1, 6, 8):
        with pytest.raises(TokenError, match='7 values'):
            TOKENIZER.encode(np.zeros(width))
        with pytest.raises(TokenError, match='7 values'):
            TOKENIZER.decode(np.full(width, 10006))


def test_another_layout_moves_the_ids_only():
    compact = Vocabulary.compact(100, 10)
    tokenizer = ActionTokenizer(LIBERO_MINIMUM, LIBERO_MAXIMUM, compact)
    actions = np.random.default_rng(0).uniform(-1, 1, (50, 7))
    shift = compact.bin_start - Vocabulary().bin_start
    np.testing.assert_array_equal(tokenizer.encode(actions), TOKENIZER.encode(actions) + shift)


@pytest.mark.parametrize('bounds', [((0,) * 6, (1,) * 6), ((0,) * 7, (0,) * 7),
                                    ((0,) * 7, (1,) * 6 + (np.nan,))])
def test_statistics_that_make_no_range_are_refused(bounds):
    with pytest.raises(ConfigError, match='action'):
        ActionTokenizer(*bounds)

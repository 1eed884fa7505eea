# SPDX-License-Identifier: Apache-2.0
"""The vocabulary's layouts are free of overlaps and travel through a configuration."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
import pytest

from worldvla_ros.errors import CheckpointError, TokenError
from worldvla_ros.tokens.vocab import Vocabulary


def test_defaults_are_the_ids_of_the_released_checkpoints():
    vocabulary = Vocabulary()
    assert (vocabulary.bos, vocabulary.separator, vocabulary.new_line) == (0, 8710, 8803)
    assert (vocabulary.boi, vocabulary.eoi) == (8197, 8196)
    assert (vocabulary.boa, vocabulary.eoa) == (10004, 15004)
    assert vocabulary.codes == range(4, 8196)
    assert vocabulary.bins == range(10006, 10262)
    assert vocabulary.grid_token(8) == 8812  # 256 px
    assert vocabulary.grid_token(16) == 8820  # 512 px


@given(num_text=st.integers(1, 5000), num_codes=st.integers(1, 9000))
def test_compact_layout_has_no_gap_and_no_overlap(num_text, num_codes):
    vocabulary = Vocabulary.compact(num_text, num_codes)  # overlaps raise
    specials = {vocabulary.separator, vocabulary.boi, vocabulary.eoi, vocabulary.new_line,
                vocabulary.boa, vocabulary.eoa}
    assert min(specials) == num_text
    assert vocabulary.size == (num_text + len(specials) + vocabulary.num_grid_sizes
                               + len(vocabulary.bins) + len(vocabulary.codes))


def test_layout_survives_the_configuration_file():
    vocabulary = Vocabulary.compact(300, 512)
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


@pytest.mark.parametrize('blocks', [1, 8, 63])
def test_grid_tokens_are_an_inverse_pair(blocks):
    vocabulary = Vocabulary()
    assert vocabulary.grid_blocks(vocabulary.grid_token(blocks)) == blocks


def test_other_tokens_are_no_grid_size():
    vocabulary = Vocabulary()
    assert vocabulary.grid_blocks(vocabulary.new_line) is None
    assert vocabulary.grid_blocks(vocabulary.boa) is None
    for blocks in (0, -1, 64):
        with pytest.raises(TokenError, match='no grid token'):
            vocabulary.grid_token(blocks)


def test_overlapping_ranges_are_refused():
    with pytest.raises(CheckpointError, match='10006 belongs to both'):
        replace(Vocabulary(), eoa=10006)


@pytest.mark.parametrize('change', [{'num_codes': 0}, {'num_bins': 1}, {'num_grid_sizes': -1}])
def test_ranges_of_nothing_are_refused(change):
    (name, value), = change.items()
    with pytest.raises(CheckpointError, match=f'{name} is {value}, expected'):
        Vocabulary(**change)


def test_ids_outside_the_table_are_refused():
    with pytest.raises(CheckpointError, match=r'eoa has id 15004.*\[0, 12000\)'):
        Vocabulary(size=12000)

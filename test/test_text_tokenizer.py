# SPDX-License-Identifier: Apache-2.0
"""Text goes to ids and back, from a file of the same format as the released one."""

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from tokenizers import Tokenizer

from worldvla_ros.errors import CheckpointError
from worldvla_ros.tokens.text_tokenizer import TextTokenizer

SENTENCES = ['pick up the milk and place it in the basket', 'open the top drawer']
TOKENIZER = TextTokenizer.train(SENTENCES, max_tokens=300)


@given(st.text(max_size=60))
@settings(max_examples=50)
def test_any_text_survives_a_round_trip(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_ids_hold_no_special_token():
    ids = TOKENIZER.encode('pick up the milk')
    assert 0 not in ids
    assert max(ids) < TOKENIZER.num_tokens


def test_known_sentences_take_fewer_tokens_than_letters():
    assert len(TOKENIZER.encode(SENTENCES[0])) < len(SENTENCES[0]) / 2


def test_saved_tokenizer_gives_the_same_ids(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = TextTokenizer.from_folder(tmp_path)
    assert loaded.encode(SENTENCES[1]) == TOKENIZER.encode(SENTENCES[1])
    assert loaded.num_tokens == TOKENIZER.num_tokens


def test_training_twice_gives_the_same_ids():
    again = TextTokenizer.train(SENTENCES, max_tokens=300)
    assert again.encode('the top of the milk') == TOKENIZER.encode('the top of the milk')


def test_what_transformers_left_in_the_file_cuts_and_pads_nothing(tmp_path):
    """Pins a bug: after a call with `truncation` instructions lost their end, in silence."""
    TOKENIZER.save(tmp_path)
    expected = TOKENIZER.encode(SENTENCES[0])
    file = Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    file.enable_truncation(2)
    file.enable_padding(length=40)
    file.save(str(tmp_path / 'tokenizer.json'))
    assert TextTokenizer.from_folder(tmp_path).encode(SENTENCES[0]) == expected


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r'no tokenizer\.json in'):
        TextTokenizer.from_folder(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{"model": 1}')
    with pytest.raises(CheckpointError, match=r'tokenizer\.json is not a tokenizers file'):
        TextTokenizer.from_folder(tmp_path)

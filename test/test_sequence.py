# SPDX-License-Identifier: Apache-2.0
"""Blocks and prompts have the published layout; malformed output is refused."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from published_text import PublishedText
import pytest

from worldvla_ros.errors import InstructionError, TokenError
from worldvla_ros.tokens.sequence import (
    PromptBuilder,
    action_block,
    image_block,
    parse_action_chunk,
    parse_image_block,
)
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.tokens.vocab import Vocabulary

VOCABULARY = Vocabulary()
TEXT = PublishedText.train(['What action should the robot take to?', 'Generate'], 300)
PROMPTS = PromptBuilder(TEXT, VOCABULARY)
ACTION = np.arange(10006, 10013)


def codes(height=2, width=3, seed=0):
    return np.random.default_rng(seed).integers(0, 8192, (2 * height, 2 * width))


@given(height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
def test_image_blocks_are_an_inverse_pair(height, width, seed):
    image = codes(height, width, seed)
    block = image_block(image, VOCABULARY)
    assert len(block) == 2 * height * (2 * width + 1) + 4
    np.testing.assert_array_equal(parse_image_block(block, VOCABULARY), image)


def test_image_block_of_one_block_reads_as_published():
    assert image_block([[0, 1], [8190, 8191]], VOCABULARY).tolist() == [
        8197, 8805, 8805, 4, 5, 8803, 8194, 8195, 8803, 8196]


@pytest.mark.parametrize(('px', 'length', 'grid'), [(256, 276, 8812), (512, 1060, 8820)])
def test_image_lengths_are_the_published_ones(px, length, grid):
    block = image_block(np.zeros((px // 16, px // 16)), VOCABULARY)
    assert len(block) == length
    assert block[1] == block[2] == grid


@pytest.mark.parametrize(('position', 'token'), [
    (0, 4), (-1, 4), (1, 8803), (2, 8804), (1, 8807), (3, 3), (4, 8196), (9, 4)])
def test_malformed_images_are_refused(position, token):
    block = image_block(codes(), VOCABULARY)
    block[position] = token
    with pytest.raises(TokenError):
        parse_image_block(block, VOCABULARY)


def test_short_and_long_images_are_refused():
    block = image_block(codes(), VOCABULARY)
    for wrong in (block[:-1], block[:3], np.insert(block, 5, 7), block[:0]):
        with pytest.raises(TokenError):
            parse_image_block(wrong, VOCABULARY)


@pytest.mark.parametrize('image', [np.zeros((3, 2)), np.zeros(4), np.zeros((0, 2)),
                                   np.full((2, 2), 8192), np.full((2, 2), -1)])
def test_codes_that_make_no_image_are_refused(image):
    with pytest.raises(TokenError, match='image codes'):
        image_block(image, VOCABULARY)


def test_an_image_too_large_for_the_grid_tokens_is_refused():
    with pytest.raises(TokenError, match='64 blocks'):
        image_block(np.zeros((2, 128)), VOCABULARY)


@given(st.integers(1, 25), st.booleans())
def test_action_chunks_are_an_inverse_pair(num_actions, with_separator):
    actions = np.random.default_rng(num_actions).integers(10006, 10262, (num_actions, 7))
    ids = [token for action in actions for token in action_block(action, VOCABULARY)]
    ids += [VOCABULARY.separator] * with_separator
    np.testing.assert_array_equal(parse_action_chunk(ids, VOCABULARY, num_actions), actions)


@pytest.mark.parametrize('ids', [
    [], [8710],
    [10004, *ACTION[:6], 15004], [10004, *ACTION, 10020, 15004],  # too short, too long
    [10004, 10006, 15004], [15004], [*ACTION, 15004],  # what the public code broadcasts, crashes
    [10004, *ACTION, 10004], [10005, *ACTION, 15004],
    [10004, *ACTION[:6], 10005, 15004], [10004, *ACTION[:6], 10262, 15004]])
def test_malformed_chunks_are_refused(ids):
    with pytest.raises(TokenError):
        parse_action_chunk(ids, VOCABULARY)


def test_another_number_of_actions_is_refused():
    with pytest.raises(TokenError, match='expected 5 actions, got 1'):
        parse_action_chunk(action_block(ACTION, VOCABULARY), VOCABULARY, 5)


def test_action_prompt_has_the_published_order():
    older, newer = codes(seed=1), codes(seed=2)
    ids = PROMPTS.action('lift the cup', [older, newer]).tolist()
    text = TEXT.encode('What action should the robot take to lift the cup?')
    assert ids == [0, *text, *image_block(older, VOCABULARY), *image_block(newer, VOCABULARY),
                   8710]
    prefix = PROMPTS.action_prefix('lift the cup', [older]).tolist()
    assert ids[:len(prefix)] == prefix
    assert ids[:len(text) + 1] == PROMPTS.text_prefix('lift the cup').tolist()


def test_world_prompt_has_the_published_order():
    image = codes()
    ids = PROMPTS.world(image, ACTION).tolist()
    text = TEXT.encode('Generate the next image based on the provided sequence of historical '
                       'images and corresponding actions.')
    assert ids == [0, *text, *image_block(image, VOCABULARY), 10004, *ACTION, 15004, 8710]


def test_prompt_lengths_are_the_published_ones():
    frame = np.zeros((16, 16), int)
    num_text = len(PROMPTS.text_prefix('lift')) - 1
    for num_images in (1, 2, 4):
        assert len(PROMPTS.action('lift', [frame] * num_images)) == 2 + num_text + 276 * num_images
    world_text = len(TEXT.encode(PROMPTS.world_prompt))
    assert len(PROMPTS.world(frame, ACTION)) == world_text + 287
    assert len(PROMPTS.world(frame, [ACTION] * 4)) == world_text + 287 + 3 * 9


def test_braces_in_an_instruction_are_plain_text():
    assert TEXT.decode(PROMPTS.text_prefix('use {tool}').tolist()[1:]).endswith('use {tool}?')


def test_a_text_that_becomes_other_tokens_is_refused_before_the_model_takes_it_for_an_image():
    """Pins a bug: a tokenizer.json of another checkpoint put grid sizes and bins into prompts."""
    foreign = PromptBuilder(TextTokenizer.train(['lift the cup'], 300), VOCABULARY)
    with pytest.raises(InstructionError, match=r'token \d+ in .*lift.* image codes'):
        foreign.action('lift', [codes()])
    compact = PromptBuilder(TextTokenizer.train(['lift'], 300), Vocabulary.compact(300, 64))
    with pytest.raises(InstructionError, match=r'token 0 in .* takes for bos'):
        compact.text_prefix('lift <s> the cup')


def test_a_text_is_tokenised_once_for_each_tokenizer_and_vocabulary(monkeypatch):
    """Pins a bug: half of the time of building batches went into the same few sentences."""
    text = TextTokenizer.train(['lift the cup'], 300)
    encoded = []

    def encode(said):
        encoded.append(said)
        return [1, 2]
    monkeypatch.setattr(text, 'encode', encode)
    first = PromptBuilder(text, VOCABULARY.compact(300, 64))
    again = PromptBuilder(text, VOCABULARY.compact(300, 64), world_prompt='what comes next')
    ids = [prompts.text_prefix('lift') for prompts in (first, again, first)]
    assert len(encoded) == 1 and all(one.tolist() == [0, 1, 2] for one in ids)
    with pytest.raises(ValueError, match='read-only'):
        ids[0][0] = 5
    other = PromptBuilder(text, VOCABULARY.compact(2, 64))
    with pytest.raises(InstructionError, match='token 2'):
        other.text_prefix('lift')
    assert PROMPTS.text_prefix('lift').tolist()[1:] == TEXT.encode(encoded[0])


@pytest.mark.parametrize('instruction', ['', '  ', '\n'])
def test_an_empty_instruction_is_refused(instruction):
    with pytest.raises(InstructionError, match='empty'):
        PROMPTS.action(instruction, [codes()])


def test_an_action_of_another_length_is_refused():
    with pytest.raises(TokenError, match='7 tokens'):
        action_block(ACTION[:6], VOCABULARY)

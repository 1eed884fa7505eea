# SPDX-License-Identifier: Apache-2.0
"""Layout of the token sequence: image blocks, action blocks and the prompts of both branches.

    action:  BOS text(t) IMAGE(t-1) IMAGE(t) [STATE] SEP  -> (BOA a1..a7 EOA) x K, SEP
             each IMAGE followed by that of the wrist camera, of checkpoints that read it
    world:   BOS text IMAGE(t) BOA a1..a7 EOA SEP         -> IMAGE(t+1), SEP
    IMAGE:   BOI grid(h) grid(w), 2h rows of (2w codes, NEW_LINE), EOI      h, w in 32 px blocks
    STATE:   state_begin, s1..s7, state_end; only of checkpoints that read the arm's state

RynnVLA-002 has the state in front of the images. Here it is last, so that what is known before
the newest frame (text, older frames) is still a prefix that can be computed ahead.

Where the public code clamps, broadcasts or crashes on malformed output, the parsers here raise
TokenError.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldvla_ros.datatypes import STATE_DIM
from worldvla_ros.errors import InstructionError, TokenError
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH, VALUES_PER_ACTION, Vocabulary

if TYPE_CHECKING:  # ROS programs read settings on the system's Python, which has no tokenizers
    from worldvla_ros.tokens.text_tokenizer import TextTokenizer

ACTION_PROMPT = 'What action should the robot take to {instruction}?'
WORLD_PROMPT = ('Generate the next image based on the provided sequence of historical images '
                'and corresponding actions.')
"""With this the public code trains; its inference helper has "Generate the image based on the
current image and the action." Which of them the released weights saw is not known, so a
checkpoint's policy.json names its own."""

TokenIds = NDArray[np.int64]


def image_block(codes: ArrayLike, vocabulary: Vocabulary) -> TokenIds:
    """Return the tokens of one image from its code indices [2h, 2w]."""
    indices = np.asarray(codes, dtype=np.int64)
    if indices.ndim != 2 or indices.size == 0 or indices.shape[0] % 2 or indices.shape[1] % 2:
        raise TokenError(f'image codes must be [2h, 2w], got shape {indices.shape}')
    if indices.min() < 0 or indices.max() >= vocabulary.num_codes:
        raise TokenError(f'image codes must lie in [0, {vocabulary.num_codes}), got '
                         f'{indices.min()} to {indices.max()}')
    rows, columns = indices.shape
    grid = [vocabulary.grid_token(rows // 2), vocabulary.grid_token(columns // 2)]
    body = np.full((rows, columns + 1), vocabulary.new_line, dtype=np.int64)
    body[:, :columns] = indices + vocabulary.code_start
    return np.concatenate(([vocabulary.boi, *grid], body.reshape(-1), [vocabulary.eoi]))


def parse_image_block(token_ids: ArrayLike, vocabulary: Vocabulary) -> TokenIds:
    """Return the code indices [2h, 2w] of one image block; inverse of `image_block`.

    Raises TokenError for missing delimiters, a wrong length, row ends or code.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.ndim != 1 or len(ids) < 4 or ids[0] != vocabulary.boi or ids[-1] != vocabulary.eoi:
        raise TokenError(f'an image block starts with {vocabulary.boi} and ends with '
                         f'{vocabulary.eoi}, got {ids.size} tokens {ids.ravel()[:3].tolist()}...')
    height, width = (vocabulary.grid_blocks(int(token)) for token in ids[1:3])
    if height is None or width is None:
        raise TokenError(f'tokens 1 and 2 of an image block are grid sizes, got '
                         f'{ids[1:3].tolist()}')
    if len(ids) - 4 != 2 * height * (2 * width + 1):
        raise TokenError(f'an image of {height} x {width} blocks has '
                         f'{2 * height * (2 * width + 1)} body tokens, got {len(ids) - 4}')
    body = ids[3:-1].reshape(2 * height, 2 * width + 1)
    if (body[:, -1] != vocabulary.new_line).any():
        raise TokenError(f'every row of an image ends with {vocabulary.new_line}')
    codes = body[:, :-1] - vocabulary.code_start
    if (codes < 0).any() or (codes >= vocabulary.num_codes).any():
        raise TokenError('an image row holds a token that is no image code')
    return codes


def action_block(token_ids: ArrayLike, vocabulary: Vocabulary) -> TokenIds:
    """Return BOA, the seven action tokens, EOA."""
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.shape != (VALUES_PER_ACTION,):
        raise TokenError(f'an action has {VALUES_PER_ACTION} tokens, got shape {ids.shape}')
    return np.concatenate(([vocabulary.boa], ids, [vocabulary.eoa]))


def state_block(token_ids: ArrayLike, vocabulary: Vocabulary) -> TokenIds:
    """Return the tokens of the arm's state, with its delimiters."""
    ids = np.asarray(token_ids, dtype=np.int64)
    delimiters = vocabulary.state_delimiters
    if ids.shape != (STATE_DIM,) or delimiters is None:
        raise TokenError(f'a state has {STATE_DIM} tokens of a vocabulary that has them, got '
                         f'shape {ids.shape}, state bins {vocabulary.state_bins}')
    return np.concatenate((delimiters[:1], ids, delimiters[1:]))


def parse_action_chunk(token_ids: ArrayLike, vocabulary: Vocabulary,
                       num_actions: int | None = None) -> TokenIds:
    """Return the action tokens [K, 7] of generated output, final separator optional.

    :param num_actions: number of blocks to insist on; None takes as many as came.
    Raises TokenError unless the output is blocks of BOA, seven action bins, EOA.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    if len(ids) and ids[-1] == vocabulary.separator:
        ids = ids[:-1]
    if len(ids) == 0 or len(ids) % ACTION_BLOCK_LENGTH:
        raise TokenError(f'a chunk is made of blocks of {ACTION_BLOCK_LENGTH} tokens, '
                         f'got {len(ids)} tokens')
    blocks = ids.reshape(-1, ACTION_BLOCK_LENGTH)
    if (blocks[:, 0] != vocabulary.boa).any() or (blocks[:, -1] != vocabulary.eoa).any():
        raise TokenError(f'every action starts with {vocabulary.boa} and ends with '
                         f'{vocabulary.eoa}, got {blocks[:, [0, -1]].tolist()}')
    actions = blocks[:, 1:-1]
    bins = vocabulary.bins
    if (actions < bins.start).any() or (actions >= bins.stop).any():
        raise TokenError(f'action tokens lie in [{bins.start}, {bins.stop}), got '
                         f'{actions.min()} to {actions.max()}')
    if num_actions is not None and len(actions) != num_actions:
        raise TokenError(f'expected {num_actions} actions, got {len(actions)}')
    return actions


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of both branches from text, image codes and action tokens."""

    text_tokenizer: 'TextTokenizer'
    vocabulary: Vocabulary
    action_prompt: str = ACTION_PROMPT  # with one {instruction}
    world_prompt: str = WORLD_PROMPT

    def text_prefix(self, instruction: str) -> TokenIds:
        """Return BOS and the text of the action prompt: what all chunks of a task share."""
        if not instruction.strip():
            raise InstructionError('the instruction is empty; expected a sentence such as '
                                   '"pick up the milk and place it in the basket"')
        return self._text(self.action_prompt.format(instruction=instruction))

    def action(self, instruction: str, images: Sequence[ArrayLike],
               state_ids: ArrayLike | None = None) -> TokenIds:
        """Return the action prompt for image codes [2h, 2w], oldest first.

        Those of a wrist camera come each after the frame of their time (RynnVLA-002).

        :param state_ids: tokens (7,) of the arm's state, for models that were trained with it.
        """
        state = [] if state_ids is None else [state_block(state_ids, self.vocabulary)]
        return np.concatenate((self.action_prefix(instruction, images), *state,
                               [self.vocabulary.separator]))

    def action_prefix(self, instruction: str, images: Sequence[ArrayLike]) -> TokenIds:
        """Return the action prompt up to and including these images: text, older frames."""
        blocks = [image_block(codes, self.vocabulary) for codes in images]
        return np.concatenate((self.text_prefix(instruction), *blocks))

    def world(self, image: ArrayLike, action_ids: ArrayLike) -> TokenIds:
        """Return the world-model prompt for one image and what was done since.

        :param action_ids: tokens of the action taken at it (7,), as published, or of several
            one after the other [N, 7].
        """
        blocks = [action_block(ids, self.vocabulary) for ids in np.atleast_2d(action_ids)]
        return np.concatenate((self.world_prefix(),
                               image_block(image, self.vocabulary), *blocks,
                               [self.vocabulary.separator]))

    def world_prefix(self) -> TokenIds:
        """Return BOS and the text of the world-model prompt, which is always the same."""
        return self._text(self.world_prompt)

    def _text(self, text: str) -> TokenIds:
        return _text_ids(self.text_tokenizer, self.vocabulary, text)


@lru_cache(maxsize=1024)  # an epoch of samples says the same few sentences over and over
def _text_ids(text_tokenizer: 'TextTokenizer', vocabulary: Vocabulary, text: str) -> TokenIds:
    """Return BOS and the ids of a text; InstructionError if one of them is no text."""
    ids = text_tokenizer.encode(text)
    if (other := vocabulary.first_that_is_no_text(ids)) is not None:
        token, meaning = other
        raise InstructionError(
            f'the text tokenizer gives token {token} in {text!r}, which the model takes for '
            f'{meaning}; say it in other words, and check that tokenizer.json is of this '
            'checkpoint')
    laid_out = np.array([vocabulary.bos, *ids], dtype=np.int64)
    laid_out.setflags(write=False)  # it is everybody's
    return laid_out

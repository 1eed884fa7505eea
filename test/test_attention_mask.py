# SPDX-License-Identifier: Apache-2.0
"""Properties of the action-chunk mask and of its packed form."""

import numpy as np
import pytest
from tiny_models import VOCABULARY, action_prompt, random_action
import torch

from worldvla_ros.errors import TokenError
from worldvla_ros.model.attention_mask import (
    action_chunk_mask,
    action_chunk_mask_row,
    causal_mask,
    packed_decode_mask,
    packed_prefill_mask,
)
from worldvla_ros.tokens.sequence import action_block

BOA, EOA, BOI, EOI = VOCABULARY.boa, VOCABULARY.eoa, VOCABULARY.boi, VOCABULARY.eoi


def mask_of(*ids):
    return action_chunk_mask(torch.tensor(ids), VOCABULARY)


def chunk(rng, num_actions):
    prompt = action_prompt(rng, 2, (1, 1))
    blocks = [action_block(random_action(rng), VOCABULARY) for _ in range(num_actions)]
    return len(prompt), torch.from_numpy(np.concatenate((prompt, *blocks)))


def test_a_causal_mask_lets_the_last_row_see_everything():
    assert causal_mask(2, 4).tolist() == [[True, True, True, False], [True] * 4]


def test_no_action_sees_another_and_all_see_the_prompt():
    length, ids = chunk(np.random.default_rng(0), 4)
    mask = action_chunk_mask(ids, VOCABULARY)
    assert mask[length:, :length].all()
    within = mask[length:, length:].reshape(4, 9, 4, 9)
    for row in range(4):
        for column in range(4):
            expected = torch.ones(9, 9).tril().bool() if row == column else torch.zeros(9, 9)
            assert torch.equal(within[row, :, column], expected.bool())


def test_packed_masks_are_rows_and_columns_of_the_published_mask():
    rng = np.random.default_rng(1)
    length, ids = chunk(rng, 3)
    full = action_chunk_mask(ids, VOCABULARY)
    starts = length + 9 * torch.arange(3)
    rows = torch.cat((torch.arange(5, length), starts))
    assert torch.equal(packed_prefill_mask(length, 5, 3),
                       full[rows][:, torch.cat((torch.arange(length), starts))])
    columns = torch.cat((torch.arange(length), *(starts + step for step in range(7))))
    assert torch.equal(packed_decode_mask(length, 3, 7), full[starts + 6][:, columns])


def test_the_last_row_alone_equals_that_of_the_whole_mask():
    _, ids = chunk(np.random.default_rng(2), 3)
    for length in range(1, len(ids) + 1):
        whole = action_chunk_mask(ids[:length], VOCABULARY)
        assert torch.equal(action_chunk_mask_row(ids[:length], VOCABULARY), whole[-1])


def test_tokens_after_the_blocks_see_everything():
    mask = mask_of(1, BOA, 2, EOA, BOA, 3, EOA, VOCABULARY.separator)
    assert mask[-1].all()
    assert not mask[4:7, 1:4].any()


def test_actions_before_the_last_image_are_not_restricted():
    mask = mask_of(BOI, EOI, BOA, 1, EOA, BOA, 2, EOA, BOI, EOI)
    assert torch.equal(mask, causal_mask(10, 10))


def test_an_open_block_runs_to_the_end():
    mask = mask_of(BOI, EOI, BOA, 1, EOA, BOA, 2)
    assert not mask[5:, 2:5].any()


def test_one_extra_end_is_dropped():
    assert torch.equal(mask_of(BOI, EOI, EOA, 1), causal_mask(4, 4))


@pytest.mark.parametrize('ids', [(BOA, 1, BOA, 2), (EOA, 1, EOA), (BOI, 1, BOI, 2)])
def test_two_unpaired_ends_raise_value_error(ids):
    with pytest.raises(ValueError, match='blocks begin') as raised:
        mask_of(*ids)
    assert isinstance(raised.value, TokenError)


def test_ids_of_another_shape_are_refused():
    with pytest.raises(TokenError, match=r'\[S\]'):
        action_chunk_mask(torch.zeros(2, 3, dtype=torch.int64))

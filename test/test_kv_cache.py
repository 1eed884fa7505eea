# SPDX-License-Identifier: Apache-2.0
"""The cache keeps exactly the rows of a common prefix."""

from hypothesis import given
from hypothesis import strategies as st
import pytest
import torch

from worldvla_ros.errors import InferenceError
from worldvla_ros.model.kv_cache import KVCache

ids = st.lists(st.integers(0, 3), max_size=12)


def rows(start, count):
    """Rows whose values say their position."""
    position = torch.arange(start, start + count, dtype=torch.float32)
    return position[None, None, :, None].expand(1, 2, count, 3)


def cache_with(num_rows, capacity=16):
    cache = KVCache(num_layers=2, num_heads=2, head_dim=3, capacity=capacity)
    for layer in range(2):
        cache.append(layer, rows(0, num_rows), -rows(0, num_rows))
    cache.advance(num_rows)
    return cache


@given(ids, ids)
def test_rewinding_keeps_the_longest_common_prefix(first, second):
    cache = cache_with(len(first))
    cache.keep_prefix(first)
    common = cache.rewind_to_common_prefix(second)
    assert first[:common] == second[:common]
    assert common == min(len(first), len(second)) or first[common] != second[common]
    assert cache.length == common
    assert cache.rewind_to_common_prefix(first) == common, 'dropped rows must not come back'


def test_appended_rows_follow_the_rows_in_use():
    cache = cache_with(4)
    cache.keep_prefix([1, 2, 3])
    keys, values = cache.append(1, rows(3, 2), -rows(3, 2))
    assert keys[0, 1, :, 2].tolist() == [0, 1, 2, 3, 4]
    assert values[0, 0, :, 0].tolist() == [0, -1, -2, -3, -4]
    assert cache.length == 3
    cache.advance(2)
    assert cache.length == 5


def test_layers_do_not_mix():
    cache = KVCache(num_layers=2, num_heads=2, head_dim=3, capacity=4)
    cache.append(0, rows(0, 2), rows(0, 2))
    keys, _ = cache.append(1, rows(7, 2), rows(7, 2))
    assert keys[0, 0, :, 0].tolist() == [7, 8]


def test_a_full_cache_says_what_is_needed():
    with pytest.raises(InferenceError, match='needs 17 rows, the KV cache has 16'):
        cache_with(16).append(0, rows(16, 1), rows(16, 1))


def test_bytes_of_a_row_count_keys_and_values_of_all_layers():
    cache = KVCache(num_layers=2, num_heads=4, head_dim=8, capacity=5, dtype=torch.bfloat16)
    assert cache.bytes_per_row == 2 * 2 * 4 * 8 * 2

# SPDX-License-Identifier: Apache-2.0
"""Places of codes in their image, and that every way to decode reads them alike."""

import json

import numpy as np
import pytest
from tiny_models import VOCABULARY, action_prompt, random_image, tiny_model, world_prompt
import torch

from worldvla_ros.errors import CheckpointError
from worldvla_ros.model.checkpoint import load_model, save_model
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.generate import (
    decode_chunk,
    decode_chunk_in_order,
    generate_free,
    prefill,
)
from worldvla_ros.model.image_decoding import decode_image, decode_image_rows, image_capacity
from worldvla_ros.model.image_places import NO_PLACE, image_places
from worldvla_ros.tokens.sequence import image_block

GRID = (1, 2)  # blocks, so 2 rows of 4 codes
CODES = (2, 4)


def placed_model(**options):
    return tiny_model(image_grid=CODES, **options)


def test_codes_are_counted_by_row_and_column_in_each_image():
    rng = np.random.default_rng(0)
    block = image_block(random_image(rng, GRID), VOCABULARY)
    ids = torch.tensor([VOCABULARY.bos, 5, *block, *block, VOCABULARY.separator, 5])
    places = image_places(ids, VOCABULARY, CODES).tolist()
    of_image = [0, 0, 0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 0, 0]  # BOI, size; row ends; EOI
    assert places == [0, 0, *of_image, *of_image, 0, 0]
    np.testing.assert_array_equal(image_places(torch.stack([ids, ids.flip(0)]), VOCABULARY,
                                               CODES)[0], places)


@pytest.mark.parametrize('start', range(1, 14))
def test_a_sequence_may_begin_within_an_image(start):
    block = torch.tensor(image_block(random_image(np.random.default_rng(1), GRID), VOCABULARY))
    whole = image_places(block, VOCABULARY, CODES)
    torch.testing.assert_close(image_places(block[start:], VOCABULARY, CODES, within=start),
                               whole[start:])
    assert (image_places(block[start:], VOCABULARY, CODES) == NO_PLACE).all()


def test_a_code_in_the_place_of_a_row_end_has_none():
    """Pins a bug: it had the next row's first place, and in the last row one past the table."""
    block = image_block(np.zeros((2, 2)), VOCABULARY)
    block[[5, 8]] = VOCABULARY.code_start
    places = image_places(torch.from_numpy(block), VOCABULARY, (2, 2))
    assert places.tolist() == [0, 0, 0, 1, 2, 0, 3, 4, 0, 0]


def test_a_code_far_behind_its_image_has_no_place():
    ids = torch.tensor([VOCABULARY.boi, 5, 5, *[VOCABULARY.code_start] * 20])
    assert image_places(ids, VOCABULARY, CODES).tolist() == [
        0, 0, 0, 1, 2, 3, 4, 0, 5, 6, 7, 8, 0, *[0] * 10]


def test_the_same_code_is_another_input_elsewhere():
    model = placed_model()
    ids = torch.tensor(image_block(np.full((2, 4), 7), VOCABULARY))[None]
    x = model.model.embed(ids, model.places(ids))[0]
    table = model.model.embed_places.weight
    torch.testing.assert_close(x[3] - x[9], table[1] - table[6])
    assert tiny_model().places(ids) is None, 'the released layout has none'


def test_chunks_are_the_same_however_they_are_decoded():
    rng = np.random.default_rng(2)
    model = placed_model(layers=3)
    engine = StaticChunkDecoder(model, 5, prompt_buckets=(30, 60), newest_rows=15)
    cache = model.new_cache(120)
    for count in (2, 1, 3, 2):
        prompt = action_prompt(rng, count, GRID)
        whole = decode_chunk(model, prompt, 5)
        assert not torch.equal(whole.log_probs, decode_chunk(tiny_model(layers=3), prompt, 5
                                                             ).log_probs)
        for cut in (9, 12, len(prompt) - 3):  # within images, too
            prefill(model, prompt[:cut], cache)
            engine.prefill(prompt[:cut])
            for decoded in (decode_chunk(model, prompt, 5, cache=cache), engine.decode(prompt)):
                torch.testing.assert_close(decoded.token_ids, whole.token_ids)
                torch.testing.assert_close(decoded.log_probs, whole.log_probs, rtol=1e-3,
                                           atol=1e-4)


def test_decoding_in_order_and_freely_equals_passes_over_the_whole_sequence():
    model = placed_model()
    prompt = action_prompt(np.random.default_rng(3), 2, GRID).tolist()
    cache = model.new_cache(120)
    prefill(model, prompt[:15], cache)
    chunk = decode_chunk_in_order(model, prompt, 2, cache=cache)
    bins = VOCABULARY.bins
    ids = [*prompt]
    for action in chunk.token_ids.tolist():
        ids.append(VOCABULARY.boa)
        for token in action:
            logits = model(torch.tensor(ids)[None])[0, -1, bins.start:bins.stop]
            assert int(logits.argmax()) + bins.start == token
            ids.append(token)
        ids.append(VOCABULARY.eoa)
    free, ids = generate_free(model, prompt, 6, attention='causal').tolist(), [*prompt]
    for token in free:
        assert int(model(torch.tensor(ids)[None])[0, -1].argmax()) == token
        ids.append(token)


@torch.inference_mode()
def test_imagined_frames_are_the_same_however_they_are_decoded():
    rng = np.random.default_rng(4)
    model = placed_model(seed=5)
    prompt = world_prompt(rng, GRID)
    capacity = image_capacity(len(prompt), GRID)
    engine = StaticImageRows(model, len(prompt) + 3, capacity - len(prompt) - 3, 16)
    plain = decode_image(model, prompt, GRID)
    ids = [*prompt, *image_block(plain.codes.numpy(), VOCABULARY)]
    codes = VOCABULARY.codes
    for place in range(len(prompt), len(ids)):
        if ids[place] in codes:
            logits = model(torch.tensor(ids[:place])[None])[0, -1]
            assert int(logits[codes.start:codes.stop].argmax()) + codes.start == ids[place]
    for draft in (plain.codes.numpy(), random_image(rng, GRID)):
        for decoded in (decode_image(model, prompt, GRID, draft=draft),
                        decode_image_rows(engine, prompt.tolist(), GRID, draft=draft)):
            torch.testing.assert_close(decoded.codes, plain.codes)


def test_the_table_is_part_of_the_checkpoint(tmp_path):
    model = placed_model()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.image_grid == CODES
    torch.testing.assert_close(loaded.model.embed_places.weight, model.model.embed_places.weight)
    config = tmp_path / 'config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | {'image_grid': [2]}))
    with pytest.raises(CheckpointError, match='image_grid is'):
        load_model(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that a model was not trained with are refused when a checkpoint is loaded."""

from dataclasses import replace
from functools import partial
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.errors import CheckpointError, InstructionError
from worldvla_ros.model.image_tokenizer import load_image_tokenizer, tokenizer_fingerprint
from worldvla_ros.policy.policy import MAX_TEXT_TOKENS, WorldVLAPolicy
from worldvla_ros.policy.pretrained import IMAGE_TOKENIZER_FOLDER, Pretrained
from worldvla_ros.policy.random_checkpoint import ensure_random_checkpoint
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_ros.tokens.text_tokenizer import TOKENIZER_FILE


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    return ensure_random_checkpoint(tmp_path_factory.mktemp('cache'))


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / 'checkpoint')


def test_the_image_tokenizer_of_another_checkpoint_is_refused_where_the_right_one_is_known(folder):
    """Pins a bug: with as many codes it loaded, and nothing told what the robot would do."""
    settings = PolicySettings.load(folder / POLICY_FILE)
    tokenizer = load_image_tokenizer(folder / IMAGE_TOKENIZER_FOLDER)
    replace(settings, image_tokenizer=tokenizer_fingerprint(tokenizer)).save(folder / POLICY_FILE)
    Pretrained.load(folder)
    replace(settings, image_tokenizer='sha256:of another').save(folder / POLICY_FILE)
    with pytest.raises(CheckpointError, match=r'is sha256:\w+, policy\.json says sha256:of anoth'):
        Pretrained.load(folder)


@pytest.mark.parametrize('device', ['cuda0', 'cuda:99'])
def test_a_device_that_is_misspelt_or_not_there_is_named(folder, device):
    """Pins a bug: torch's own error came, from the middle of the weights."""
    for load in (Pretrained.load, partial(WorldVLAPolicy.from_pretrained, weights='fp8')):
        with pytest.raises(CheckpointError, match=f"device is '{device}', .*; take cpu, or ins"):
            load(folder, device=device)


def test_an_image_size_that_the_vocabulary_cannot_say_is_refused(folder):
    """Pins a bug: it was found by the first chunk."""
    settings = PolicySettings.load(folder / POLICY_FILE)
    replace(settings, image_size=4096).save(folder / POLICY_FILE)
    with pytest.raises(CheckpointError, match=r'image_size of policy\.json .* side of 128 blocks'):
        Pretrained.load(folder)


def test_a_text_tokenizer_whose_words_are_other_tokens_is_refused(folder):
    """Pins a bug: grid sizes, action bins and image codes were put into the instruction."""
    code = Pretrained.load(folder).model.config.vocabulary.code_start
    Tokenizer(models.WordLevel({'[UNK]': code}, unk_token='[UNK]')).save(
        str(folder / TOKENIZER_FILE))
    with pytest.raises(CheckpointError, match=r'does not fit the model: .* for image codes'):
        Pretrained.load(folder)


def test_an_instruction_without_room_is_refused_before_anything_is_computed(folder):
    """Pins a bug: what was too long spoke of rows of the KV cache, and 18 more tokens passed."""
    policy = WorldVLAPolicy.from_pretrained(folder, dtype='float32')
    picture = Frame(np.zeros((policy.image_size, policy.image_size, 3), np.uint8), 0)

    def ask(letters):
        policy.predict_chunk(Observation((picture,), letters * 'z'))
    room = next(count for count in range(1, 1000) if len(
        policy.pretrained.prompts.text_prefix(count * 'z')) == MAX_TEXT_TOKENS + len(
            policy.pretrained.prompts.text_prefix('?')))
    ask(room)
    with pytest.raises(InstructionError, match='1 tokens too long, it may have about 192'):
        ask(room + 1)
    with pytest.raises(InstructionError, match='too long'):
        policy.prepare([picture], (room + 1) * 'z')

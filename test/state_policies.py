# SPDX-License-Identifier: Apache-2.0
"""A tiny checkpoint that reads the state of the arm, and twins that do not or see by the wrist."""

from tiny_models import attentive_model
from training_data import tiny_tokenizer

from worldvla_ros.policy.pretrained import Pretrained
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.tokens.sequence import ACTION_PROMPT, WORLD_PROMPT
from worldvla_ros.tokens.text_tokenizer import TextTokenizer
from worldvla_ros.training.run_folder import save_pretrained


def attentive_policy(reads_state=True, reads_wrist=False):
    """Return a random policy for 64 px images, with weights so large that all it sees counts."""
    text = TextTokenizer.train([ACTION_PROMPT, WORLD_PROMPT], 300)
    low, high = ((-1.0,) * 7, (1.0,) * 7) if reads_state else (None, None)
    return Pretrained(
        attentive_model(text.num_tokens, with_state=reads_state), tiny_tokenizer(), text,
        PolicySettings('tiny', trained=False, image_size=64, state_minimum=low,
                       state_maximum=high, reads_wrist=reads_wrist))


def state_checkpoint(folder):
    """Write the policy that reads the state; returns the folder."""
    save_pretrained(attentive_policy(), folder)
    return folder

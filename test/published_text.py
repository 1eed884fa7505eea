# SPDX-License-Identifier: Apache-2.0
"""A small text tokenizer for the released vocabulary, in which low ids are image codes."""

from worldvla_ros.tokens.text_tokenizer import TextTokenizer

FIRST_ID = 20_000  # of text, and of nothing else there


class PublishedText(TextTokenizer):
    """Ids from FIRST_ID on."""

    def encode(self, text):
        return [token + FIRST_ID for token in super().encode(text)]

    def decode(self, ids):
        return super().decode([token - FIRST_ID for token in ids])

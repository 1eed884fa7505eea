# SPDX-License-Identifier: Apache-2.0
"""Text tokenizer: a checkpoint's own tokenizer.json, turning instructions into token ids."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from worldvla_ros.errors import CheckpointError

TOKENIZER_FILE = 'tokenizer.json'


class TextTokenizer:
    """Turns text into ids of the shared vocabulary, without special tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # transformers leaves what its last call asked for in tokenizer.json, and ignores it there.
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @classmethod
    def from_folder(cls, folder: Path, *elsewhere: Path) -> 'TextTokenizer':
        """Read `tokenizer.json` of a checkpoint; raises CheckpointError when it is unusable.

        :param elsewhere: files that are looked for next, in this order.
        """
        places = (folder / TOKENIZER_FILE, *elsewhere)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise CheckpointError(
                f'no {TOKENIZER_FILE} in {folder}: expected the tokenizer that the checkpoint '
                f'was trained with; looked for {", ".join(map(str, places))}')
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # `tokenizers` raises bare Exception on a malformed file
            raise CheckpointError(f'{path} is not a tokenizers file: {error}') from error

    @classmethod
    def train(cls, sentences: Iterable[str], max_tokens: int) -> Self:
        """Train a byte-level BPE, so that any text can be encoded. Id 0 is BOS."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=max_tokens, special_tokens=['<s>'], show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
        tokenizer.train_from_iterator(sentences, trainer)
        return cls(tokenizer)

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`; inverse of `from_folder`."""
        self._tokenizer.save(str(folder / TOKENIZER_FILE))

    @property
    def num_tokens(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Return the ids of the text alone: no BOS, no end token."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of the ids; inverse of `encode` for byte-level tokenizers."""
        return str(self._tokenizer.decode(ids))

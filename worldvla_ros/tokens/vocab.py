# SPDX-License-Identifier: Apache-2.0
"""The one home of every token id and id range that the model reads or writes.

The defaults are Chameleon's own layout, as the public WorldVLA code and its released checkpoints
use it (`<reservedN>` of Chameleon's text_tokenizer.json has id N + 4 for N >= 8706). A small
checkpoint stores a compact layout in its config.json, so that it need not carry 65,536 rows.

This module imports nothing but the errors, and of `tokens/` it alone is imported by `model/`: the
decoder has to know which ids open a block and which are action bins, and a second table of
the same numbers there would be a second home.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from worldvla_ros.errors import CheckpointError, TokenError

VALUES_PER_ACTION = 7
"""Tokens between BOA and EOA: dx dy dz, rotation vector (3), gripper."""

ACTION_BLOCK_LENGTH = VALUES_PER_ACTION + 2
"""Tokens of one action in the sequence: BOA, seven values, EOA."""

IMAGE_HEAD_LENGTH = 3
"""Tokens of an image before its codes: BOI and the two that say its size."""

_STATE_FIELDS = ('state_begin', 'state_end', 'state_bin_start')


@dataclass(frozen=True)
class Vocabulary:
    """Layout of the shared vocabulary of text, image, action and state tokens."""

    size: int = 65536  # rows of the embedding table
    bos: int = 0  # begin of sequence; a released config.json says 1, which is stale
    separator: int = 8710  # ends a turn of the conversation; generation stops at it
    boi: int = 8197  # begin of image
    eoi: int = 8196  # end of image
    new_line: int = 8803  # ends one row of image codes
    grid_start: int = 8804  # grid size n (n blocks of 32 px) -> grid_start + n
    num_grid_sizes: int = 64
    code_start: int = 4  # image code index c -> code_start + c
    num_codes: int = 8192
    boa: int = 10004  # begin of action
    eoa: int = 15004  # end of action
    bin_start: int = 10006  # action bin b (0-based) -> bin_start + b
    num_bins: int = 256
    state_begin: int | None = 15504  # opens the arm's state (RynnVLA-002); None: no such tokens
    state_end: int | None = 16004
    state_bin_start: int | None = 15506  # state bin b (0-based) -> state_bin_start + b

    def __post_init__(self) -> None:
        """Refuse ids outside the table, ranges that overlap, and half of the state's tokens."""
        if len({getattr(self, name) is None for name in _STATE_FIELDS}) > 1:
            raise CheckpointError(f'vocabulary: give all of {", ".join(_STATE_FIELDS)} or none')
        for name in ('num_codes', 'num_bins', 'num_grid_sizes'):
            if getattr(self, name) < (least := 2 if name == 'num_bins' else 1):
                raise CheckpointError(f'vocabulary: {name} is {getattr(self, name)}, expected '
                                      f'{least} or more')
        owner: dict[int, str] = {}
        for name, ids in self._named_ranges().items():
            for token in (ids[0], ids[-1]):
                if not 0 <= token < self.size:
                    raise CheckpointError(f'vocabulary: {name} has id {token}, expected an id '
                                          f'in [0, {self.size})')
            for token in ids:
                if token in owner:
                    raise CheckpointError(f'vocabulary: id {token} belongs to both '
                                          f'{owner[token]} and {name}, expected disjoint ranges')
                owner[token] = name

    def first_that_is_no_text(self, ids: Iterable[int]) -> tuple[int, str] | None:
        """Return the first id that stands for something else, and what: such as 'action bins'."""
        ranges = self._named_ranges()
        return next(((token, name) for token in ids for name, taken in ranges.items()
                     if token in taken), None)

    def _named_ranges(self) -> dict[str, range]:
        singles = ('bos', 'separator', 'boi', 'eoi', 'new_line', 'boa', 'eoa')
        ranges = {name: range(getattr(self, name), getattr(self, name) + 1) for name in singles}
        if self.state_delimiters is not None:
            begin, end = self.state_delimiters
            ranges |= {'begin of state': range(begin, begin + 1),
                       'end of state': range(end, end + 1), 'state bins': self.state_bins}
        return ranges | {'image codes': self.codes, 'action bins': self.bins,
                         'grid sizes': range(self.grid_start,
                                             self.grid_start + self.num_grid_sizes)}

    @classmethod
    def compact(cls, num_text_tokens: int, num_codes: int, num_grid_sizes: int = 32
                ) -> 'Vocabulary':
        """Return a layout without gaps: text (BOS is text id 0), specials, grid, bins, codes.

        It has no tokens of the arm's state; see `with_state`.
        """
        specials = num_text_tokens
        grid_start = specials + 6
        bin_start = grid_start + num_grid_sizes
        code_start = bin_start + cls.num_bins
        return cls(size=code_start + num_codes, bos=0, separator=specials, boi=specials + 1,
                   eoi=specials + 2, new_line=specials + 3, boa=specials + 4, eoa=specials + 5,
                   grid_start=grid_start, num_grid_sizes=num_grid_sizes, code_start=code_start,
                   num_codes=num_codes, bin_start=bin_start, state_begin=None, state_end=None,
                   state_bin_start=None)

    def with_state(self) -> 'Vocabulary':
        """Return the layout with tokens of the arm's state, behind all others if it has none."""
        if self.has_state:
            return self
        return replace(self, size=self.size + 2 + self.num_bins, state_begin=self.size,
                       state_end=self.size + 1, state_bin_start=self.size + 2)

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> 'Vocabulary':
        """Read the layout from a config.json entry; an unknown or missing key is an error."""
        names = {field.name for field in fields(cls)}
        if not isinstance(entries, Mapping):
            raise CheckpointError(f'vocabulary: expected an object, got {entries!r}')
        complete: dict[str, Any] = {**dict.fromkeys(_STATE_FIELDS), **entries}  # newer than some
        if set(complete) != names:
            raise CheckpointError(
                f'vocabulary: unknown keys {sorted(set(complete) - names)}, missing keys '
                f'{sorted(names - set(complete))}; expected exactly {sorted(names)}')
        for name, value in complete.items():
            if type(value) is not int and not (value is None and name in _STATE_FIELDS):
                raise CheckpointError(f'vocabulary: {name} is {value!r}, expected a whole number')
        return cls(**complete)

    def to_dict(self) -> dict[str, int | None]:
        """Return the entry for config.json; inverse of `from_dict`."""
        return asdict(self)

    @property
    def codes(self) -> range:
        """Ids of the image codes, in codebook order."""
        return range(self.code_start, self.code_start + self.num_codes)

    @property
    def bins(self) -> range:
        """Ids of the action bins, lowest value first."""
        return range(self.bin_start, self.bin_start + self.num_bins)

    @property
    def has_state(self) -> bool:
        """Whether there are tokens of the arm's state."""
        return self.state_bin_start is not None

    @property
    def state_delimiters(self) -> tuple[int, int] | None:
        """Ids that open and close the arm's state; None if there are none."""
        if self.state_begin is None or self.state_end is None:
            return None
        return self.state_begin, self.state_end

    @property
    def state_bins(self) -> range:
        """Ids of the bins of the arm's state, lowest value first; empty if there are none."""
        start = self.state_bin_start
        return range(0) if start is None else range(start, start + self.num_bins)

    def grid_token(self, blocks: int) -> int:
        """Return the id that says a side of the image has this many blocks of 32 px."""
        if not 0 < blocks < self.num_grid_sizes:
            raise TokenError(f'an image side of {blocks} blocks of 32 px has no grid token; '
                             f'expected 1 to {self.num_grid_sizes - 1}')
        return self.grid_start + blocks

    def grid_blocks(self, token: int) -> int | None:
        """Return the blocks of 32 px that a grid token stands for, None for another token."""
        blocks = token - self.grid_start
        return blocks if 0 < blocks < self.num_grid_sizes else None

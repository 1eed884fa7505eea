# SPDX-License-Identifier: Apache-2.0
"""Which texts may become an instruction."""

from worldvla_ros.errors import InstructionError


def checked_instruction(text: str, max_length: int) -> str:
    """
    Return the text in single-spaced words; empty where there are none.

    :param max_length: [characters]
    Raises InstructionError for a text that is too long or has control characters.
    """
    instruction = ' '.join(text.split())
    if len(instruction) > max_length:
        raise InstructionError(f'an instruction may have {max_length} characters, got '
                               f'{len(instruction)}')
    if not instruction.isprintable():
        raise InstructionError('an instruction must be plain text, got control characters')
    return instruction

# SPDX-License-Identifier: Apache-2.0
"""Weight files on disk: read tensor by tensor, checked key by key, never unpickled.

Whatever is missing, truncated, misshapen or foreign raises CheckpointError with its name.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
import json
from pathlib import Path
import pickle
import re
from typing import Any
import zipfile

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor, nn

from worldvla_ros.errors import CheckpointError


def require_device(device: str) -> None:
    """Raise CheckpointError for a torch device that is misspelt or not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first, *_ = str(error).splitlines() or ['']
        raise CheckpointError(f'device is {device!r}, and torch {torch.__version__} cannot use it '
                              f'({first}); take cpu, or install a torch that was built for it'
                              ) from None


def fill_from_tensors(module: nn.Module, tensors: Iterable[tuple[str, Tensor]], source: Path,
                      device: str, dtype: torch.dtype, may_lack: Collection[str] = ()) -> None:
    """Fill a module that lies on the meta device, one tensor at a time; every key must match."""
    expected = module.state_dict()
    missing = set(expected) - set(may_lack)
    for name, value in tensors:
        if name not in expected:
            raise CheckpointError(f'{source}: unexpected key {name}, expected keys such as '
                                  f'{next(iter(expected))}')
        if value.shape != expected[name].shape:
            raise CheckpointError(f'{source}: {name} has shape {tuple(value.shape)}, expected '
                                  f'{tuple(expected[name].shape)} from the configuration')
        if not value.is_floating_point():
            raise CheckpointError(f'{source}: {name} holds {value.dtype}, expected weights that '
                                  'are not quantized')
        owner, _, attribute = name.rpartition('.')
        parameter = nn.Parameter(value.to(device=device, dtype=dtype))
        setattr(module.get_submodule(owner), attribute, parameter)
        missing.discard(name)
    if missing:
        raise CheckpointError(f'{source}: {len(missing)} keys are missing, the first is '
                              f'{min(missing)}')


def tensor_shape(files: Iterable[Path], name: str) -> tuple[int, ...]:
    """Return the shape of one tensor without reading any; CheckpointError if no file has it."""
    for path in files:
        with _opened(path) as file:
            if name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                return tuple(file.get_slice(name).get_shape())
    raise CheckpointError(f'key {name} is missing in {[str(path) for path in files]}')


def read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file."""
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            yield name, file.get_tensor(name)


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), framework='pt')
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'{path} is no complete safetensors file: {error}') from error


def write_safetensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to one safetensors file."""
    path.touch()
    mode = path.stat().st_mode  # as of any new file; the library lets nobody else read its own
    save_file({name: value.contiguous() for name, value in state.items()}, str(path),
              metadata={'format': 'pt'})
    path.chmod(mode)


def read_torch_checkpoint(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a torch checkpoint's `state_dict`; only tensors are unpickled.

    What training left beside them (epoch, states of optimizers) is skipped if it is plain values.
    """
    try:
        mapped = zipfile.is_zipfile(path)  # torch's format before 1.6 cannot be mapped
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=mapped)
        state = content.get('state_dict', content)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, AttributeError) as error:
        objects = re.findall(r'GLOBAL (\S+)', str(error))
        held = f'holds {objects[0]}' if objects else 'is truncated or holds more than tensors'
        raise CheckpointError(
            f'{path} {held} and is not unpickled, because that would run its code; where you '
            f"trust it, keep its tensors alone: torch.save({{'state_dict': torch.load(FILE, "
            f"weights_only=False)['state_dict']}}, FILE) ({str(error).splitlines()[0]})"
        ) from error
    yield from ((name, value) for name, value in state.items() if isinstance(value, Tensor))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises CheckpointError naming the file."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f'cannot read {path}: {error}') from error
    if not isinstance(entries, dict):
        raise CheckpointError(f'{path}: expected a JSON object')
    return entries

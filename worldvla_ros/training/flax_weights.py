# SPDX-License-Identifier: Apache-2.0
"""Weights as users of Flax pickle them: trees of NumPy arrays. Nothing else is unpickled."""

from collections.abc import Iterator, Mapping
from pathlib import Path
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from worldvla_ros.errors import CheckpointError

Arrays = dict[str, NDArray[np.float32]]
MISFITS = (CheckpointError, KeyError, IndexError, ValueError, RuntimeError)
"""What `load_arrays` and the making of a network raise for a file of something else."""

# By name alone: NumPy's modules have moved since the files were written.
_ALLOWED = {'ndarray': np.ndarray, 'dtype': np.dtype, '_reconstruct': np.empty(0).__reduce__()[0]}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.split('.')[0] != 'numpy' or name not in _ALLOWED:
            raise pickle.UnpicklingError(f'it holds a {module}.{name}, which is no array')
        return _ALLOWED[name]


def load_arrays(path: Path) -> Arrays:
    """Return the arrays of a pickled tree by their paths, such as `params/Conv_0/kernel`.

    :raises CheckpointError: no such file, or it holds anything else; nothing of it is run.
    """
    try:
        with path.open('rb') as file:
            tree = _ArraysOnly(file).load()
    except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
            pickle.UnpicklingError) as error:
        raise CheckpointError(f'{path} has no pickled arrays: {error}') from error
    if not isinstance(tree, Mapping):
        raise CheckpointError(f'{path} has no tree of arrays, but a {type(tree).__name__}')
    return dict(_flat(tree))


def convolution_kernel(arrays: Arrays, name: str) -> Tensor:
    """Return a kernel as torch has it, [out, in, *extent]; Flax has [*extent, in, out]."""
    kernel = torch.from_numpy(np.array(arrays[name], np.float32))
    return kernel.movedim((-1, -2), (0, 1)).contiguous()


def vector(arrays: Arrays, name: str) -> Tensor:
    """Return an array as a vector, whatever its shape."""
    return torch.from_numpy(np.array(arrays[name], np.float32)).reshape(-1)


def describe_misfit(path: Path, error: Exception) -> str:
    """Say why a network could not be made of a file; the error is one of MISFITS."""
    if isinstance(error, CheckpointError):
        return str(error)
    if isinstance(error, KeyError):
        return f'{path} has no {error}'
    return f'{path}: {str(error).splitlines()[0]}'


def _flat(tree: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, NDArray[np.float32]]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f'{prefix}{name}/')
        else:
            yield f'{prefix}{name}', value

# SPDX-License-Identifier: Apache-2.0
"""Import LIBERO without its prompt, torch, log file or downloads, and choose its assets.

Importing `libero.libero` as it comes asks on standard input for a data folder and writes to the
home directory; importing robosuite opens a log file in the temp folder for every user to fight
over. `import_libero` does both imports behind a private configuration that is gone afterwards.
"""

from collections.abc import Iterator, Mapping, MutableMapping
import contextlib
from dataclasses import dataclass
import functools
import importlib
import importlib.util
import logging
import os
from pathlib import Path
import sys
import tempfile
import types
from typing import Any

import numpy as np

from worldvla_ros.errors import AssetError, SimulationError
from worldvla_ros.held_signals import signals_held

ASSET_CHOICES = ('auto', 'builtin', 'official')
NO_EGL_ADVICE = ('install the packages libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri (Debian and '
                 'Ubuntu names), or install libosmesa6 and set MUJOCO_GL=osmesa')
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assets:
    """The meshes and textures that an environment uses."""

    kind: str  # 'builtin' or 'official'
    path: Path


@functools.cache
def libero_folder() -> Path:
    """Return the folder of the package `libero.libero` without importing it.

    :raises SimulationError: LIBERO is not installed.
    """
    spec = importlib.util.find_spec('libero')
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(root) / 'libero').is_dir():
            return folder
    raise SimulationError('LIBERO is not installed in this interpreter: pip install -r '
                          'requirements/sim.txt, then pip install --no-deps -r '
                          'requirements/sim-no-deps.txt')


def official_candidates(environ: Mapping[str, str] = os.environ) -> list[Path]:
    """Return where official assets are looked for: $LIBERO_ASSETS, LIBERO's cache, the package."""
    if explicit := environ.get('LIBERO_ASSETS'):
        return [Path(explicit).expanduser()]
    return [Path.home() / '.cache' / 'libero' / 'assets', libero_folder() / 'assets']


def _holds_assets(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in ('scenes', 'articulated_objects'))


def resolve_assets(choice: str = 'auto', environ: Mapping[str, str] = os.environ) -> Assets:
    """Choose the assets: `official` where a user has them, else the pack that we generate.

    A folder named by $LIBERO_ASSETS that holds no assets is an error even for `auto`, because
    whoever set it means it. Nothing is ever downloaded.

    :raises AssetError: unknown choice, or official assets asked for and not found.
    """
    if choice not in ASSET_CHOICES:
        raise AssetError(f'unknown assets {choice!r}, choose one of {", ".join(ASSET_CHOICES)}')
    if choice != 'builtin':
        candidates = official_candidates(environ)
        for folder in candidates:
            if _holds_assets(folder):
                return Assets('official', folder.resolve())
        if choice == 'official' or environ.get('LIBERO_ASSETS'):
            raise AssetError(
                f'no LIBERO assets (folders scenes, articulated_objects, ...) in '
                f'{" or ".join(map(str, candidates))}; set LIBERO_ASSETS to a folder that has '
                f'them, or use the built-in assets')
    from worldvla_sim.assets.pack import ensure_builtin_pack
    return Assets('builtin', ensure_builtin_pack())


def configure_gl(environ: MutableMapping[str, str] = os.environ) -> None:
    """Choose the off-screen renderer in the environment, before robosuite is imported.

    EGL is the default. An EGL device is named explicitly where CUDA_VISIBLE_DEVICES hides all
    GPUs, because robosuite reads its EGL device from that variable and fails on '' and '-1'.
    """
    backend = environ.setdefault('MUJOCO_GL', 'egl').lower()
    if backend in ('egl', 'osmesa'):
        environ['PYOPENGL_PLATFORM'] = backend
    visible = environ.get('CUDA_VISIBLE_DEVICES')
    if visible is not None and not all(part.isdigit() for part in visible.split(',')):
        environ.setdefault('MUJOCO_EGL_DEVICE_ID', '0')


@contextlib.contextmanager
def changed_environment(**changes: str | None) -> Iterator[None]:
    """Set variables (None: unset) and put back what was there."""
    before = {name: os.environ.get(name) for name in changes}

    def apply(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    apply(changes)
    try:
        yield
    finally:
        apply(before)


def _cache_numba_in_home() -> None:
    """Keep numba's compiled code (3 s per process without it) where it can be written."""
    spec = importlib.util.find_spec('robosuite')
    if spec and spec.origin and not os.access(Path(spec.origin).parent, os.W_OK):
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
        os.environ.setdefault('NUMBA_CACHE_DIR', str(cache / 'worldvla_ros' / 'numba'))


def _log_mujoco_warnings() -> None:
    """Send MuJoCo's warnings to logging; on its own it appends them to ./MUJOCO_LOG.TXT."""
    import mujoco
    mujoco.set_mju_user_warning(lambda text: _logger.warning('MuJoCo: %s', text))


@functools.cache
def import_libero() -> Any:
    """Import LIBERO's environments quietly and return the module `libero.libero`.

    :raises SimulationError: LIBERO or robosuite cannot be imported; the cause is attached.
    """
    libero_folder()
    configure_gl()
    _cache_numba_in_home()
    # robosuite warns and logs to a file unless the user made this module; an empty one will do.
    sys.modules.setdefault('robosuite.macros_private', types.ModuleType('macros_private'))
    visible = os.environ.get('CUDA_VISIBLE_DEVICES')
    if 'MUJOCO_EGL_DEVICE_ID' in os.environ:
        visible = None  # robosuite asserts that the two name the same device
    try:
        with tempfile.TemporaryDirectory(prefix='worldvla_libero_') as folder:
            Path(folder, 'config.yaml').write_text('{}\n')
            with changed_environment(LIBERO_CONFIG_PATH=folder, CUDA_VISIBLE_DEVICES=visible):
                module = importlib.import_module('libero.libero')
                importlib.import_module('libero.libero.envs')
        _log_mujoco_warnings()
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        # PyOpenGL's own word for a library that is missing is an AttributeError of None.
        raise SimulationError(f'LIBERO or robosuite cannot be imported: {error}; if this is about '
                              f'EGL or OpenGL: {NO_EGL_ADVICE}') from error
    return module


def use_assets(assets: Assets) -> None:
    """Point LIBERO at these assets; it reads the path whenever it loads a model.

    hf-libero 0.1.4 ignores the `assets` entry of its own configuration file, so its cached path
    is the one switch there is.
    """
    import_libero()._assets_path_cache = str(assets.path)


@functools.cache
def check_renderer() -> None:
    """Create and free one off-screen context, so that a missing driver is named before any work.

    :raises SimulationError: there is no usable EGL or OSMesa; says what to install.
    """
    import_libero()
    from robosuite.utils.binding_utils import GLContext
    try:
        _choose_a_device_that_is_there()
        with signals_held():
            GLContext(max_width=16, max_height=16, device_id=-1).free()
    except (ImportError, RuntimeError, AttributeError, AssertionError, OSError,
            ValueError) as error:
        chosen = ', '.join(f'{name}={os.environ[name]}' for name in (
            'MUJOCO_GL', 'MUJOCO_EGL_DEVICE_ID', 'CUDA_VISIBLE_DEVICES') if name in os.environ)
        raise SimulationError(
            f'no off-screen rendering with {chosen}: {error}; '
            f'{NO_EGL_ADVICE}') from error


def _choose_a_device_that_is_there() -> None:
    """Take the first EGL device where CUDA_VISIBLE_DEVICES names one that EGL has not.

    A container may show one of several GPUs to EGL, and its number to CUDA.
    """
    visible = os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',')[0]
    if visible and os.environ['MUJOCO_GL'].lower() == 'egl':
        from mujoco.egl import egl_ext
        if int(visible) >= len(egl_ext.eglQueryDevicesEXT()):
            os.environ.setdefault('MUJOCO_EGL_DEVICE_ID', '0')


def has_diverged(data: Any) -> bool:
    """Whether the physics of a `mujoco.MjData` blew up since it was made.

    MuJoCo resets such a state and goes on; only its warning counters tell.
    """
    import mujoco  # not at the top: the import needs the environment of `configure_gl`
    kinds = mujoco.mjtWarning
    return any(data.warning[kind].number for kind in (
        kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC))


@contextlib.contextmanager
def numpy_seeded(*seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which LIBERO samples from, and put it back afterwards.

    :param seed: one number, or several: each combination is a stream of its own.
    """
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed[0] if len(seed) == 1 else seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002

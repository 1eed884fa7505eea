# SPDX-License-Identifier: Apache-2.0
"""Build the asset pack on first use, keep it in the user's cache, and refuse half-written ones.

The pack is a folder that LIBERO reads instead of its own assets.  It is generated from this
package's code in about a second; `manifest.json` lists every file with its SHA-256, so that a pack
that a killed run or a full disk left behind is noticed and built again.
"""

import contextlib
import errno
from functools import cache
import hashlib
import inspect
import json
from pathlib import Path
import shutil
import tempfile
import time

from worldvla_ros.errors import AssetError
from worldvla_sim.assets import (
    appliances,
    arenas,
    cookware,
    desk,
    dishes,
    drawers,
    groceries,
    labels,
    mjcf,
    mugs,
    rooms,
    shapes,
    textures,
    wine,
)
from worldvla_sim.assets.cache import user_cache, writable_cache

FORMAT_VERSION = 1  # of manifest.json
PACK_VERSION = '1.0'  # of what the assets look like; quoted with evaluation results
_FAMILIES = (groceries, dishes, mugs, cookware, wine, desk, drawers, appliances)
_GENERATORS = (arenas, *_FAMILIES, labels, mjcf, rooms, shapes, textures)
_MANIFEST = 'manifest.json'
_ATTEMPTS = 3  # another process may replace the same broken pack at the same time
_SCRATCH_PREFIX = '.building-'
_ABANDONED_AFTER_S = 3600.0  # a build takes seconds: an older scratch folder is a killed run's


def ensure_builtin_pack(cache_dir: Path | None = None) -> Path:
    """
    Return the folder of the built-in asset pack; write it first where it is missing or broken.

    :param cache_dir: folder to keep packs in; default `$XDG_CACHE_HOME/worldvla_ros` (or
        `~/.cache/worldvla_ros`), and a private temporary folder where that cannot be written.
    :raises AssetError: the folder cannot be written or the disk is full.

    Several processes may call this at once: each builds in a folder of its own, and the first
    rename wins.
    """
    root = user_cache() if cache_dir is None else Path(cache_dir)
    if is_complete(root / pack_name()):
        return root / pack_name()
    return _ensure_in(writable_cache(root) if cache_dir is None else root)


def pack_name() -> str:
    """Return the pack's folder name: its version and a digest of the code that generates it."""
    return f'libero-assets-{PACK_VERSION}-{_generator_digest()}'


def build_files() -> dict[str, bytes]:
    """Return every file of the pack: path -> content, without touching the disk."""
    files = arenas.floor_textures()
    for arena in arenas.build():
        files.update(arena.files())
    for family in _FAMILIES:
        for asset in family.build():
            files.update(asset.files())
    return dict(sorted(files.items()))


def is_complete(pack: Path) -> bool:
    """Tell whether a folder holds the files that its manifest lists, with their digests."""
    try:
        manifest = json.loads((pack / _MANIFEST).read_text())
        if (manifest['format_version'], manifest['name']) != (FORMAT_VERSION, pack.name):
            return False
        return all(
            _digest((pack / path).read_bytes()) == digest
            for path, digest in manifest['files'].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _ensure_in(root: Path) -> Path:
    pack = root / pack_name()
    try:
        for _ in range(_ATTEMPTS):
            if is_complete(pack):
                return pack
            root.mkdir(parents=True, exist_ok=True)
            _replace(root, pack)
        if is_complete(pack):
            return pack
    except OSError as error:
        raise AssetError(
            f'cannot write the LIBERO asset pack to {root}: {error.strerror or error}; '
            'make the folder writable, free space, or set XDG_CACHE_HOME to another folder'
        ) from error
    raise AssetError(
        f'the asset pack in {pack} stays incomplete after {_ATTEMPTS} builds; '
        'remove the folder and look for another program that changes it'
    )


def _replace(root: Path, pack: Path) -> None:
    """Build a pack beside its place and rename it there; what stood there goes away."""
    _remove_abandoned(root)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=root))
    try:
        _write(scratch / pack.name)
        if pack.exists():
            pack.rename(scratch / 'broken')
        (scratch / pack.name).rename(pack)
    except OSError as error:
        # Another process was faster: its pack is in place, or the broken one is already gone.
        overtaken = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT)
        if not overtaken and not is_complete(pack):
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    """Remove what killed builds left in a cache folder."""
    for scratch in root.glob(f'{_SCRATCH_PREFIX}*'):
        with contextlib.suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(scratch)


def _write(folder: Path) -> None:
    files = build_files()
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    manifest = {
        'format_version': FORMAT_VERSION, 'name': folder.name, 'pack_version': PACK_VERSION,
        'files': {path: _digest(content) for path, content in files.items()},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def _generator_digest() -> str:
    """Return eight digits that change with the generating code: no stale pack is ever used."""
    return _digest(b''.join(Path(inspect.getfile(module)).read_bytes()
                            for module in _GENERATORS))[:8]

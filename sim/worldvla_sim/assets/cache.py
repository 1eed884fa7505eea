# SPDX-License-Identifier: Apache-2.0
"""Where generated files are kept: the user's cache folder, or a private temporary one."""

import functools
import logging
import os
from pathlib import Path
import tempfile

from worldvla_ros.errors import AssetError
from worldvla_ros.whole_files import try_writing

_LOGGER = logging.getLogger(__name__)


def user_cache() -> Path:
    """Return `$XDG_CACHE_HOME/worldvla_ros`, by default `~/.cache/worldvla_ros`; may not exist."""
    base = os.environ.get('XDG_CACHE_HOME')
    return (Path(base) if base else Path.home() / '.cache') / 'worldvla_ros'


@functools.cache
def writable_cache(preferred: Path) -> Path:
    """
    Return `preferred` where it can be written, else a private folder below the temp folder.

    :raises AssetError: neither can be written.
    """
    try:
        try_writing(preferred)
        return preferred
    except OSError as error:
        fallback = Path(tempfile.gettempdir()) / f'worldvla_ros-{os.getuid()}'
        _LOGGER.warning(
            'the cache folder %s cannot be written (%s); using %s, which is built again after '
            'each reboot; set XDG_CACHE_HOME to a writable folder to avoid this',
            preferred, error.strerror, fallback)
    try:
        fallback.mkdir(mode=0o700, exist_ok=True)
        if fallback.is_symlink() or fallback.stat().st_uid != os.getuid():
            raise PermissionError(1, 'the folder belongs to another user')
        try_writing(fallback)
        return fallback
    except OSError as error:
        raise AssetError(
            f'neither {preferred} nor {fallback} can be written ({error.strerror}); '
            'make one of them writable or set XDG_CACHE_HOME to a writable folder') from error

# SPDX-License-Identifier: Apache-2.0
"""Start the graph of nodes as processes, without ROS launch, and stop every one of them."""

from collections.abc import Sequence
import ctypes
import os
from pathlib import Path
import signal
import subprocess
import time

from ament_index_python.packages import get_package_prefix

from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import PACKAGE, NodeSpec

_GRACE = 5.0  # [s] a node gets to say goodbye
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None)


def _stop_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent dies, however it dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class ProcessGroup:
    """
    The processes of a graph; use it as a context manager.

    Each node writes to `<log_folder>/<name>.log` and runs in a session of its own, so that Ctrl-C
    reaches this process alone and the nodes are stopped in order.
    """

    def __init__(self, specs: Sequence[NodeSpec], log_folder: Path) -> None:
        self._specs = specs
        self._log_folder = log_folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> 'ProcessGroup':
        folder = Path(get_package_prefix(PACKAGE)) / 'lib' / PACKAGE
        for spec in self._specs:
            with self.log_path(spec.name).open('wb') as log:
                self._processes[spec.name] = subprocess.Popen(
                    [str(folder / spec.executable), *spec.ros_arguments()], stdout=log,
                    stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                    env={**os.environ, 'PYTHONUNBUFFERED': '1'},
                    preexec_fn=_stop_with_parent)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _GRACE
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @property
    def process_ids(self) -> dict[str, int]:
        """Process id of each node by its name, for diagnostics and tests."""
        return {name: process.pid for name, process in self._processes.items()}

    def log_path(self, name: str) -> Path:
        """Return where a node writes its log."""
        return self._log_folder / f'{name}.log'

    def check(self) -> None:
        """Raise WorldVLAError with the end of its log if a node has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise WorldVLAError(f'{name} ended with status {process.returncode}; '
                                    f'{self.end_of_log(name)}')

    def end_of_log(self, name: str) -> str:
        """Return where the log of a node is, and its last lines."""
        path = self.log_path(name)
        tail = path.read_text(errors='replace').splitlines()[-5:]
        return f'{path} ends with:\n  ' + '\n  '.join(tail)

    def last_message(self, name: str) -> str:
        """Return the last line of a node's log without severity, time and name."""
        last = self.log_path(name).read_text(errors='replace').rstrip().rpartition('\n')[2]
        return last.partition(f'[{name}]: ')[2] or last

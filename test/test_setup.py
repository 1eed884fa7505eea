# SPDX-License-Identifier: Apache-2.0
"""What tools/setup.sh finds missing on a machine, on made-up ones that have next to nothing."""

from pathlib import Path
import shutil
import subprocess

import pytest

SCRIPT = Path(__file__).parent.parent / 'tools' / 'setup.sh'
COMPILERS = 'gcc g++ cmake make'  # missing on every such machine, which ends the script


@pytest.fixture
def machine(tmp_path):
    """A folder with a copy of the script, and `bin` with all the programs that there are."""
    (tmp_path / 'bin').mkdir()
    for name in ('bash', 'dirname', 'mkdir'):
        (tmp_path / 'bin' / name).symlink_to(shutil.which(name))
    (tmp_path / 'tools').mkdir()
    shutil.copy(SCRIPT, tmp_path / 'tools')
    return tmp_path


def add_program(machine, name, body):
    (machine / 'bin' / name).write_text(f'#!/bin/sh\n{body}\n')
    (machine / 'bin' / name).chmod(0o755)


def missing(machine):
    """Run the script; return what it says is missing."""
    done = subprocess.run([shutil.which('bash'), 'tools/setup.sh'], cwd=machine, text=True,
                          capture_output=True, timeout=60, check=False,
                          env={'PATH': str(machine / 'bin')})
    assert done.returncode == 1
    return done.stderr.partition('missing on this machine: ')[2].splitlines()[0]


@pytest.mark.parametrize('name', ['python3.11', 'python3.12', 'python3.13', 'python3'])
def test_any_python_that_fits_is_taken_though_others_do_not(machine, name):
    """Pins a bug: beside a python3 that does not fit, a python3.13 was not seen."""
    add_program(machine, 'python3.11', 'exit 1')
    add_program(machine, 'python3', 'exit 1')
    add_program(machine, name, 'exit 0')
    assert missing(machine) == COMPILERS


def test_libraries_are_not_looked_for_with_a_python_that_does_not_fit(machine):
    """Pins a bug: it found none, so that all of them counted as missing."""
    add_program(machine, 'python3', 'exit 1')
    assert missing(machine) == f'python3.11 python3.11-venv python3.11-dev {COMPILERS}'

# SPDX-License-Identifier: Apache-2.0
"""What tools/setup.sh finds missing on a machine, on made-up ones that have next to nothing."""

import os
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


def complaint(machine, folder='.', **variables):
    """Run the script from a folder of the machine, named as it is from there."""
    script = os.path.relpath(machine / 'tools' / 'setup.sh', machine / folder)
    done = subprocess.run([shutil.which('bash'), script], cwd=machine / folder, text=True,
                          capture_output=True, timeout=60, check=False,
                          env={'PATH': str(machine / 'bin'), **variables})
    assert done.returncode == 1
    return done.stderr


def missing(machine):
    """Return what the script says is missing."""
    return complaint(machine).partition('missing on this machine: ')[2].splitlines()[0]


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


@pytest.mark.parametrize('folder', ['.', 'tools'])
def test_apt_get_is_asked_again_only_for_what_else_is_missing(machine, folder):
    """Pins a bug: what apt-get could not provide was asked for without an end."""
    add_program(machine, 'id', 'echo 0')
    add_program(machine, 'later', 'case "$*" in *ctypes*) exit 1; esac')  # a Python, no libraries
    add_program(machine, 'apt-get', f'cd {machine}; echo "$*" >> asked\n'
                                    f'{shutil.which("cp")} bin/later bin/python3.11')
    said = complaint(machine, folder, WORLDVLA_APT='1')
    libraries = 'libegl1 libegl-mesa0 libgl1-mesa-dri libgl1'
    update, install = 'update -q', 'install -y -q'
    assert (machine / 'asked').read_text().splitlines() == [
        update, f'{install} python3.11 python3.11-venv python3.11-dev {COMPILERS}',
        update, f'{install} {COMPILERS} {libraries}']
    assert f'missing still, after apt-get: {COMPILERS} {libraries}' in said

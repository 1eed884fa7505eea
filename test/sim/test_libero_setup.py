# SPDX-License-Identifier: Apache-2.0
"""LIBERO imports quietly, and its assets come from where a user has them."""

import os
from pathlib import Path
import signal
import subprocess
import sys

import pytest

from worldvla_ros.errors import AssetError, SimulationError
from worldvla_sim import libero_setup

ROOT = Path(__file__).resolve().parents[2]


def make_assets(folder):
    for part in ('scenes', 'articulated_objects'):
        (folder / part).mkdir(parents=True)
    return folder


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, 'home', lambda: tmp_path / 'home')
    monkeypatch.setattr(libero_setup, 'libero_folder', lambda: tmp_path / 'package')
    return tmp_path


def test_import_and_rendering_print_nothing_and_leave_nothing(tmp_path):
    home, temp = tmp_path / 'home', tmp_path / 'temp'
    home.mkdir()
    temp.mkdir()
    program = (
        'import sys; from worldvla_sim.libero_env import LiberoEnv, NO_OP\n'
        'env = LiberoEnv("libero_object", 0, image_size=64)\n'
        'env.reset(0, settle_steps=1); env.step(NO_OP)\n'
        'assert "torch" not in sys.modules, "torch was imported"\n'
        'assert "rclpy" not in sys.modules, "rclpy was imported"\n')  # ends without close()
    cache = os.environ.get('XDG_CACHE_HOME', str(Path.home() / '.cache'))
    result = subprocess.run(
        [sys.executable, '-c', program], cwd=temp, stdin=subprocess.DEVNULL, text=True,
        capture_output=True, check=False, env=os.environ | {
            'HOME': str(home), 'TMPDIR': str(temp), 'XDG_CACHE_HOME': cache,
            'PYTHONPATH': f'{ROOT}:{ROOT / "sim"}'})
    assert result.returncode == 0, result.stderr
    assert result.stdout == ''
    assert result.stderr == ''
    assert list(temp.iterdir()) == []
    assert not (home / '.libero').exists()


def test_official_assets_are_taken_from_the_variable_first(empty_home):
    ours = make_assets(empty_home / 'mine')
    make_assets(empty_home / 'home' / '.cache' / 'libero' / 'assets')
    chosen = libero_setup.resolve_assets('auto', {'LIBERO_ASSETS': str(ours)})
    assert (chosen.kind, chosen.path) == ('official', ours)


def test_official_assets_are_found_in_liberos_cache_then_in_the_package(empty_home):
    packaged = make_assets(empty_home / 'package' / 'assets')
    assert libero_setup.resolve_assets('official', {}).path == packaged
    cached = make_assets(empty_home / 'home' / '.cache' / 'libero' / 'assets')
    assert libero_setup.resolve_assets('official', {}).path == cached


def test_auto_falls_back_to_the_builtin_pack(empty_home):
    assert libero_setup.resolve_assets('auto', {}).kind == 'builtin'


def test_a_named_folder_without_assets_is_an_error_even_for_auto(empty_home):
    with pytest.raises(AssetError, match='LIBERO_ASSETS'):
        libero_setup.resolve_assets('auto', {'LIBERO_ASSETS': str(empty_home)})


def test_missing_official_assets_say_where_they_were_looked_for(empty_home):
    with pytest.raises(AssetError, match=r'\.cache/libero/assets'):
        libero_setup.resolve_assets('official', {})


def test_unknown_asset_choice_lists_the_choices():
    with pytest.raises(AssetError, match='auto, builtin, official'):
        libero_setup.resolve_assets('best')


@pytest.mark.parametrize('hidden', ['', '-1', 'none'])
def test_hidden_gpus_do_not_take_the_egl_device_away(hidden):
    environ = {'CUDA_VISIBLE_DEVICES': hidden}
    libero_setup.configure_gl(environ)
    assert environ['MUJOCO_EGL_DEVICE_ID'] == '0'
    assert environ['MUJOCO_GL'] == environ['PYOPENGL_PLATFORM'] == 'egl'


def test_a_chosen_gpu_and_osmesa_are_respected():
    environ = {'CUDA_VISIBLE_DEVICES': '1', 'MUJOCO_GL': 'osmesa', 'PYOPENGL_PLATFORM': 'egl'}
    libero_setup.configure_gl(environ)
    assert 'MUJOCO_EGL_DEVICE_ID' not in environ
    assert environ['PYOPENGL_PLATFORM'] == 'osmesa'


def test_environment_changes_are_undone(monkeypatch):
    monkeypatch.setenv('WORLDVLA_A', 'before')
    monkeypatch.delenv('WORLDVLA_B', raising=False)
    with libero_setup.changed_environment(WORLDVLA_A=None, WORLDVLA_B='inside'):
        assert 'WORLDVLA_A' not in os.environ
        assert os.environ['WORLDVLA_B'] == 'inside'
    assert os.environ['WORLDVLA_A'] == 'before'
    assert 'WORLDVLA_B' not in os.environ


def run(program, **environment):
    return subprocess.run([sys.executable, '-c', program], cwd=ROOT, capture_output=True,
                          text=True, timeout=120, check=False,
                          env={**os.environ, **environment})


def test_a_library_that_is_missing_at_import_is_named_with_packages_and_osmesa():
    """Pins a bug: PyOpenGL's AttributeError of None was all that one was told."""
    done = run("""
import ctypes
load = ctypes.CDLL.__init__
def refuse(self, name, *arguments, **options):
    if 'EGL' in str(name):
        raise OSError(f'{name}: cannot open shared object file')
    load(self, name, *arguments, **options)
ctypes.CDLL.__init__ = refuse
from worldvla_sim.libero_setup import import_libero
import_libero()
""", MUJOCO_GL='egl')
    last = done.stderr.splitlines()[-1]
    assert 'SimulationError' in last and 'libegl1' in last and 'MUJOCO_GL=osmesa' in last


def test_a_gpu_that_egl_does_not_have_leaves_its_first_device():
    """Pins a bug: CUDA_VISIBLE_DEVICES=3 in a container with one GPU ended every rendering."""
    done = run('from worldvla_sim.libero_setup import check_renderer\ncheck_renderer()',
               CUDA_VISIBLE_DEVICES='97')
    assert done.returncode == 0, done.stderr


def test_what_chose_a_renderer_that_fails_is_named():
    done = run('from worldvla_sim.libero_setup import check_renderer\ncheck_renderer()',
               MUJOCO_EGL_DEVICE_ID='abc')
    assert 'SimulationError: no off-screen rendering' in done.stderr
    assert 'MUJOCO_EGL_DEVICE_ID=abc' in done.stderr


def test_a_missing_renderer_is_named_with_packages_and_osmesa(monkeypatch):
    libero_setup.import_libero()
    from robosuite.utils import binding_utils

    def no_driver(**_):
        raise ImportError('Cannot initialize a EGL device display')
    monkeypatch.setattr(binding_utils, 'GLContext', no_driver)
    with pytest.raises(SimulationError, match=r'libegl1.*MUJOCO_GL=osmesa'):
        libero_setup.check_renderer.__wrapped__()


def test_ctrl_c_while_the_renderer_is_tried_takes_effect_after_it(monkeypatch):
    """Pins a bug: robosuite's destructor complained of a context that was not made."""
    libero_setup.import_libero()
    from robosuite.utils import binding_utils
    freed = []

    class Context:
        def __init__(self, **_):
            signal.raise_signal(signal.SIGINT)

        def free(self):
            freed.append(self)
    monkeypatch.setattr(binding_utils, 'GLContext', Context)
    with pytest.raises(KeyboardInterrupt):
        libero_setup.check_renderer.__wrapped__()
    assert len(freed) == 1

# SPDX-License-Identifier: Apache-2.0
"""The asset pack is written whole or not at all, and fits LIBERO's tasks."""

import errno
import io
import json
import logging
import multiprocessing
import os
from pathlib import Path
import time
from xml.etree import ElementTree as ET

import numpy as np
from PIL import Image
import pytest

from worldvla_ros.errors import AssetError
from worldvla_sim.assets import cache, labels, pack
from worldvla_sim.assets.acceptance import load_expectations
from worldvla_sim.assets.check import check_task
from worldvla_sim.assets.forced_goal import force_goal
from worldvla_sim.assets.gallery import contact_sheet
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.tasks import SUITES, suite_tasks

ROOMS = [('libero_object', 0), ('libero_goal', 0), ('libero_10', 3), ('libero_10', 4),
         ('libero_10', 5)]
# One task for each set of objects and fixtures that differs in kind.
SAMPLE = [('libero_spatial', 4), ('libero_object', 0), ('libero_object', 3), ('libero_goal', 3),
          ('libero_goal', 9), ('libero_10', 0), ('libero_10', 3), ('libero_10', 4),
          ('libero_10', 5), ('libero_10', 8), ('libero_10', 9)]

# Tasks whose official states let an object fall onto the edge of a neighbour.  Anywhere else such
# a fall means that something of ours is too large.
FALLS = {('libero_spatial', 0), ('libero_spatial', 2), ('libero_spatial', 4),
         ('libero_spatial', 8), ('libero_10', 0), ('libero_10', 3)}


def assert_fits(suite, task, states, expected):
    findings = check_task(suite, task, assets='builtin', init_states=states, expected=expected)
    unexplained = [text for text, reason in findings
                   if reason is None or (suite, task) not in FALLS]
    assert not unexplained


@pytest.fixture(scope='module')
def files():
    return pack.build_files()


@pytest.fixture
def quick_build(files, monkeypatch):
    """Drawing takes a second; what is written does not matter to these tests."""
    monkeypatch.setattr(pack, 'build_files', lambda: files)


@pytest.fixture(scope='module')
def expected():
    return load_expectations()


def xml_files(files):
    return {path: ET.fromstring(content) for path, content in files.items()
            if path.endswith('.xml')}


def test_two_builds_are_equal_byte_for_byte(files):
    assert pack.build_files() == files


def test_the_manifest_lists_every_file_with_its_digest(tmp_path, quick_build, files):
    folder = pack.ensure_builtin_pack(tmp_path)
    manifest = json.loads((folder / 'manifest.json').read_text())
    assert (manifest['format_version'], manifest['pack_version']) == (1, pack.PACK_VERSION)
    assert manifest['name'] == folder.name == pack.pack_name()
    on_disk = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
    assert on_disk == {*manifest['files'], 'manifest.json'} == {*files, 'manifest.json'}


def test_a_second_call_writes_nothing(tmp_path, monkeypatch):
    folder = pack.ensure_builtin_pack(tmp_path)
    monkeypatch.setattr(pack, 'build_files', lambda: pytest.fail('built again'))
    assert pack.ensure_builtin_pack(tmp_path) == folder


def truncate(folder: Path) -> None:
    path = folder / 'stable_hope_objects/milk/milk.xml'
    path.write_bytes(path.read_bytes()[:100])


def remove_one(folder: Path) -> None:
    (folder / 'textures/light-gray-plaster.png').unlink()


def drop_the_manifest(folder: Path) -> None:
    (folder / 'manifest.json').unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / 'manifest.json').write_text('[]')


@pytest.mark.parametrize(
    'damage', [truncate, remove_one, drop_the_manifest, garble_the_manifest])
def test_a_half_written_pack_is_noticed_and_built_again(tmp_path, quick_build, damage):
    folder = pack.ensure_builtin_pack(tmp_path)
    damage(folder)
    assert not pack.is_complete(folder)
    assert pack.ensure_builtin_pack(tmp_path) == folder
    assert pack.is_complete(folder)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # no scratch left


def test_scratch_folders_of_killed_builds_are_removed(tmp_path, quick_build):
    for name, age in (('.building-old', 7200), ('.building-now', 0)):
        (tmp_path / name / 'part').mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    pack.ensure_builtin_pack(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'.building-now', pack.pack_name()}


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(
    tmp_path, quick_build, monkeypatch,
):
    def full(*_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(AssetError, match=r'No space left.*free space'):
        pack.ensure_builtin_pack(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_named_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(AssetError, match='writable'):
        pack.ensure_builtin_pack(tmp_path / 'file')


def test_without_a_writable_cache_a_private_temporary_folder_is_used(
    tmp_path, quick_build, monkeypatch, caplog,
):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    cache.writable_cache.cache_clear()
    with caplog.at_level(logging.WARNING):
        folder = pack.ensure_builtin_pack()
    assert folder.parent.parent == tmp_path and pack.is_complete(folder)
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert 'XDG_CACHE_HOME' in caplog.text


def build_in(folder):
    return str(pack.ensure_builtin_pack(Path(folder)))


def test_processes_that_start_together_end_with_one_whole_pack(tmp_path):
    with multiprocessing.get_context('spawn').Pool(3) as pool:
        folders = pool.map(build_in, [tmp_path] * 3, chunksize=1)
    assert len(set(folders)) == 1 and pack.is_complete(Path(folders[0]))
    assert len(list(tmp_path.iterdir())) == 1


def test_only_collision_geoms_touch_and_weigh(files):
    for path, root in xml_files(files).items():
        for geom in root.iter('geom'):
            if geom.get('name') == 'floor':
                continue
            if geom.get('group') == '1':
                assert (geom.get('contype'), geom.get('mass')) == ('0', '0'), path
            else:
                assert geom.get('group') == '0', path
                assert path.startswith('scenes/') or float(geom.get('mass')) > 0, path


def test_nothing_makes_mujoco_render_twice(files):
    for path, root in xml_files(files).items():
        assert {m.get('reflectance') for m in root.iter('material')} <= {'0'}, path
        assert {light.get('castshadow') for light in root.iter('light')} <= {'false'}, path


def test_textures_are_small_and_present(files):
    for path, root in xml_files(files).items():
        for texture in root.iter('texture'):
            if file := texture.get('file'):
                target = str((Path('/') / path).parent.joinpath(file).resolve())[1:]
                assert max(Image.open(io.BytesIO(files[target])).size) <= 256


def test_mesh_normals_are_unit_vectors_that_agree_with_their_faces(files):
    for path, root in xml_files(files).items():
        for mesh in root.iter('mesh'):
            vertices, normals = (np.array(mesh.get(key).split(), float).reshape(-1, 3)
                                 for key in ('vertex', 'normal'))
            faces = np.array(mesh.get('face').split(), int).reshape(-1, 3)
            assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-4), path
            first, second, third = (vertices[faces[:, k]] for k in range(3))
            flat = np.cross(second - first, third - first)
            lengths = np.linalg.norm(flat, axis=1, keepdims=True)
            real = lengths[:, 0] > 1e-9
            agree = np.einsum('fd,fd->f', flat / np.maximum(lengths, 1e-12),
                              normals[faces].mean(axis=1))
            assert agree[real].min() > 0.5, f'{path} {mesh.get("name")}'


def test_no_two_groceries_have_the_same_dominant_colour():
    images = {
        'alphabet soup': labels.alphabet_soup_label(), 'tomato sauce': labels.tomato_label(),
        'ketchup': labels.ketchup_label(), 'dressing': labels.dressing_label(),
        'bbq': labels.bbq_label(), 'milk': labels.carton_label('milk'),
        'juice': labels.carton_label('orange_juice'), 'butter': labels.butter_label(),
        'cheese': labels.cream_cheese_label(), 'pudding': labels.pudding_label(),
        'cookies': labels.cookies_label(),
    }
    means = {name: image.reshape(-1, 3).mean(axis=0) for name, image in images.items()}
    for name, mean in means.items():
        for other, other_mean in means.items():
            assert name == other or np.linalg.norm(mean - other_mean) > 25, (name, other)


@pytest.mark.parametrize(('suite', 'task'), SAMPLE)
def test_layout_resting_poses_and_goals_fit(suite, task, expected):
    assert_fits(suite, task, [0], expected)


@pytest.mark.slow
@pytest.mark.parametrize('suite', SUITES)
def test_all_tasks_fit(suite, expected):
    for task in suite_tasks(suite):
        assert_fits(suite, task.index, [0, 13, 31], expected)


def test_the_check_notices_a_region_at_another_height(expected):
    with LiberoEnv('libero_goal', 4, assets='builtin', render=False) as env:
        env.reset(0)
        env.model.site('wooden_cabinet_1_top_side').pos[2] += 0.02
        assert not force_goal(env)


@pytest.mark.parametrize(('suite', 'task'), ROOMS)
def test_every_room_renders_and_its_objects_show(suite, task):
    with LiberoEnv(suite, task, assets='builtin') as env:
        with_objects = env.reset(0).agentview.astype(int)
        for body in env.privileged().bodies:  # lift everything out of the picture
            joint = f'{body}_joint0'
            if joint in {env.model.joint(k).name for k in range(env.model.njnt)}:
                env.data.joint(joint).qpos[2] += 50
        without_objects = env.step(np.zeros(7)).agentview.astype(int)
    assert with_objects.std() > 20 and 40 < with_objects.mean() < 220
    changed = np.abs(with_objects - without_objects).max(axis=2) > 30
    assert changed.mean() > 0.005


def test_a_contact_sheet_holds_every_picture_in_order():
    pictures = [np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(pictures, columns=2)
    assert sheet.shape == (8, 12, 3)
    assert [sheet[0, 0, 0], sheet[0, 6, 0], sheet[4, 0, 0]] == [10, 20, 30]

# SPDX-License-Identifier: Apache-2.0
"""The light robot looks lighter and moves exactly like the full one."""

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from worldvla_ros.errors import AssetError
from worldvla_sim.assets import light_robot
from worldvla_sim.libero_env import LiberoEnv


def sphere(rings: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return a unit sphere of 2 * rings^2 triangles and more."""
    theta = np.linspace(0, np.pi, rings)
    phi = np.linspace(0, 2 * np.pi, rings)
    t, p = np.meshgrid(theta, phi, indexing='ij')
    vertices = np.stack([np.sin(t) * np.cos(p), np.sin(t) * np.sin(p), np.cos(t)], -1)
    index = np.arange(rings * rings).reshape(rings, rings)
    a, b, c, d = (part.ravel() for part in (index[:-1, :-1], index[1:, :-1], index[1:, 1:],
                                            index[:-1, 1:]))
    return vertices.reshape(-1, 3), np.concatenate([np.stack([a, b, c], 1),
                                                    np.stack([a, c, d], 1)])


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 0.8))
def test_clustering_moves_no_point_further_than_a_cell(cell):
    vertices, faces = sphere()
    fewer, merged = light_robot.cluster(vertices, faces, cell)
    assert 0 < len(merged) < len(faces)
    assert merged.max() < len(fewer)
    distances = np.linalg.norm(vertices[:, None] - fewer[None], axis=2).min(axis=1)
    assert distances.max() <= cell * np.sqrt(3)
    assert (np.linalg.norm(fewer, axis=1) > 1 - cell * np.sqrt(3)).all()


def test_clustering_leaves_no_collapsed_or_repeated_face():
    _, merged = light_robot.cluster(*sphere(), 0.3)
    assert all(len(set(face)) == 3 for face in merged.tolist())
    assert len({tuple(sorted(face)) for face in merged.tolist()}) == len(merged)


@pytest.fixture
def mesh_file(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    vertices, faces = sphere()
    path = tmp_path / 'sphere_vis.obj'
    path.write_text(''.join(f'v {x} {y} {z}\n' for x, y, z in vertices)
                    + ''.join(f'f {a}//1 {b}//1 {c}//1\n' for a, b, c in faces + 1))
    return path


def test_a_light_mesh_is_made_once_and_read_back(mesh_file):
    light = light_robot.light_mesh_file(mesh_file, 0.3)
    before = light.stat()
    assert light_robot.light_mesh_file(mesh_file, 0.3) == light
    assert light.stat().st_mtime_ns == before.st_mtime_ns
    vertices, faces = light_robot.read_mesh(light)
    assert 100 < len(faces) < 1000
    assert np.abs(np.linalg.norm(vertices, axis=1) - 1).max() < 0.3


def test_a_truncated_mesh_is_made_again(mesh_file):
    light = light_robot.light_mesh_file(mesh_file, 0.3)
    whole = light.read_bytes()
    light.write_bytes(whole[:-70])
    assert light_robot.light_mesh_file(mesh_file, 0.3) == light
    assert light.read_bytes() == whole


def test_a_failed_write_is_an_asset_error_and_leaves_no_mesh(mesh_file, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'replace', full)
    with pytest.raises(AssetError, match='No space left'):
        light_robot.light_mesh_file(mesh_file, 0.3)
    assert not [path for path in (mesh_file.parent / 'cache').rglob('*') if path.is_file()]


@pytest.mark.parametrize(('suite', 'task'), [('libero_object', 0), ('libero_goal', 0)])
def test_the_light_robot_moves_exactly_like_the_full_one(suite, task):
    """Pins that only looks differ, on the ground and on the mount."""
    models, states, faces = [], [], []
    for robot in ('full', 'light'):
        with LiberoEnv(suite, task, assets='builtin', robot=robot, render=False) as env:
            env.reset(0)
            random = np.random.default_rng(3)
            for _ in range(10):
                env.step(random.uniform(-1, 1, 7))
            models.append(env.model)
            states.append(np.concatenate([env.data.qpos, env.data.qvel]))
            drawn = env.model.geom_group == 1
            meshes = env.model.geom_dataid[drawn & (env.model.geom_type == 7)]
            faces.append(int(env.model.mesh_facenum[meshes].sum()))
    full, light = models
    for field in ('body_mass', 'body_inertia', 'body_ipos', 'jnt_range', 'dof_damping',
                  'dof_armature', 'actuator_gainprm', 'actuator_ctrlrange'):
        assert np.array_equal(getattr(full, field), getattr(light, field)), field
    assert np.array_equal(states[0], states[1])
    assert faces[1] < 0.3 * faces[0]

# SPDX-License-Identifier: Apache-2.0
"""A tree that is too large for a lent machine leaves weights here, and gets all of them back."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
import yaml

BENCHMARKS = Path(__file__).parents[1] / 'benchmarks'
LARGE, LARGER, TOKENIZER = (f'worldvla_ros/checkpoints/{name}.safetensors' for name in (
    'mini/model', 'libero/model-00001-of-00002', 'libero/image_tokenizer/model'))
SIZES = {LARGE: 20_000, LARGER: 30_000, TOKENIZER: 10_000}  # [bytes]


@pytest.fixture
def packing(monkeypatch):
    """Return the module, with a limit that a small repository can break."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import pack_for_device
    monkeypatch.setattr(pack_for_device, 'LIMIT', 70_000)
    return pack_for_device


@pytest.fixture
def tree(tmp_path):
    """Return a repository of two checkpoints, a recipe and a store that is ignored."""
    for name, size in SIZES.items():
        write(tmp_path / name, bytes([size % 251]) * size)
    recipe(tmp_path)
    write(tmp_path / '.gitignore', b'scratch/\nout/\n')
    for arguments in (['init', '-q'], ['add', '.'], [
            '-c', 'user.name=test', '-c', 'user.email=test', 'commit', '-qm', 'all']):
        subprocess.run(['git', *arguments], cwd=tmp_path, check=True)
    write(tmp_path / 'scratch/store.tar.xz', bytes(15_000))
    return tmp_path


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def recipe(tree, tokenizer=Path(TOKENIZER).parent, init_from=''):
    text = yaml.safe_dump({'data': {'tokenizer': str(tokenizer)},
                           'model': {'init_from': str(init_from)}})
    write(tree / 'train.yaml', text.encode())


def is_whole(tree):
    changed = subprocess.run(['git', 'status', '--porcelain'], cwd=tree, capture_output=True,
                             text=True, check=True).stdout
    waits = tree / 'scratch/left_here'
    return not changed and not [path for path in waits.rglob('*') if path.is_file()]


def pack(packing, tree, stage='train', store='scratch/store.tar.xz'):
    moved, carried = packing.pack(tree, stage, 'train.yaml', store)
    return [str(path) for path in moved], [str(path) for path in carried]


def test_the_largest_weights_stay_here_until_the_rest_fits(packing, tree):
    assert pack(packing, tree) == ([LARGER], ['scratch/store.tar.xz'])
    assert not (tree / LARGER).exists() and (tree / LARGE).exists()
    assert [str(path) for path in packing.restore(tree)] == [LARGER]
    assert is_whole(tree) and packing.restore(tree) == []


def test_a_stage_that_carries_nothing_leaves_nothing_here(packing, tree):
    assert pack(packing, tree, 'second') == ([], [])
    assert is_whole(tree)


def test_a_second_call_brings_back_what_an_interrupted_one_left(packing, tree, monkeypatch):
    monkeypatch.setattr(packing, 'LIMIT', 40_000)
    rename, done = Path.rename, []

    def interrupted(path, target):
        if done:
            raise KeyboardInterrupt
        done.append(rename(path, target))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, 'rename', interrupted)
        pack(packing, tree)
    assert not (tree / LARGER).exists()
    assert pack(packing, tree)[0] == [LARGER, LARGE]
    packing.restore(tree)
    assert is_whole(tree)


def test_what_the_recipe_starts_from_and_image_tokenizers_travel(packing, tree, monkeypatch):
    recipe(tree, init_from=Path(LARGER).parent)
    assert pack(packing, tree)[0] == [LARGE]
    monkeypatch.setattr(packing, 'LIMIT', 20_000)
    with pytest.raises(packing.PackingError, match=r'MiB would travel .* even without .*mini'):
        pack(packing, tree)
    assert all((tree / name).exists() for name in SIZES)


def test_a_store_that_is_too_large_beside_the_weights_goes_first(packing, tree):
    recipe(tree, init_from=Path(LARGER).parent)
    write(tree / 'scratch/store.tar.xz', bytes(50_000))
    with pytest.raises(packing.PackingError, match='would travel'):
        pack(packing, tree)
    assert pack(packing, tree, 'store') == ([LARGER, LARGE], ['scratch/store.tar.xz'])
    assert pack(packing, tree, store='') == ([], [])
    assert all((tree / name).exists() for name in SIZES)


def test_an_image_tokenizer_of_ones_own_is_carried(packing, tree):
    recipe(tree, tokenizer='out/tokenizer')
    with pytest.raises(packing.PackingError, match='out/tokenizer: the stage train needs it'):
        pack(packing, tree)
    write(tree / 'out/tokenizer/model.safetensors', bytes(10))
    assert pack(packing, tree)[1] == ['scratch/store.tar.xz', 'out/tokenizer']


def test_untracked_files_count_and_ignored_ones_do_not(packing, tree):
    before = packing.travelling_bytes(tree, [])
    write(tree / 'new.bin', bytes(1000))
    write(tree / 'out/large.bin', bytes(100_000))
    assert packing.travelling_bytes(tree, []) == before + 512 + 1024


def test_a_file_that_took_the_place_of_one_is_not_written_over(packing, tree):
    pack(packing, tree)
    write(tree / LARGER, b'another')
    with pytest.raises(packing.PackingError, match='differs from'):
        packing.restore(tree)
    subprocess.run(['git', 'checkout', '-q', '--', LARGER], cwd=tree, check=True)
    packing.restore(tree)  # the same again: one of both goes
    assert is_whole(tree)


def test_the_command_says_what_to_call_and_how_to_undo_it(tree):
    def run(*arguments):
        return subprocess.run([sys.executable, BENCHMARKS / 'pack_for_device.py', *arguments,
                               '--root', tree], capture_output=True, text=True, check=False)
    packed = run('train', '--recipe', 'train.yaml')
    assert packed.returncode == 0, packed.stderr
    assert re.search(r'^carry: scratch/store.tar.xz$', packed.stdout, re.MULTILINE)
    assert re.search(r'^call: COMMIT=[0-9a-f]+ RECIPE=train.yaml bash benchmarks/on_device.sh '
                     r'train$', packed.stdout, re.MULTILINE)
    (tree / 'scratch/store.tar.xz').unlink()
    failed = run('train', '--recipe', 'train.yaml')
    assert failed.returncode == 1 and 'scratch/store.tar.xz: the stage train' in failed.stderr
    assert run('restore').stdout == 'brought back: nothing\n'


def test_stages_and_recipes_are_those_of_the_script(packing):
    script = (BENCHMARKS / 'on_device.sh').read_text()
    assert set(packing.STAGES) == set(re.findall(r'^ {8}([a-z]+)\) ', script, re.MULTILINE))
    assert all(recipe in script for recipe in packing.RECIPES.values())


@pytest.mark.parametrize('inside', ['.', 'scratch/mix'])
def test_a_store_is_found_in_the_folders_that_it_was_packed_with(tmp_path, inside):
    """Pins a bug: the training found no store.json, and the machine's time was gone."""
    write(tmp_path / 'packed' / inside / 'store.json', b'{}')
    write(tmp_path / 'recipe.yaml', b'data:\n  store: out/store\n')
    with tarfile.open(tmp_path / 'store.tar.xz', 'w:xz') as archive:
        archive.add(tmp_path / 'packed', '.')
    (tmp_path / 'benchmarks').mkdir()
    shutil.copy(BENCHMARKS / 'on_device.sh', tmp_path / 'benchmarks')
    done = subprocess.run(
        ['bash', 'benchmarks/on_device.sh', 'store'], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {'RECIPE': 'recipe.yaml', 'STORE': 'store.tar.xz'}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (tmp_path / 'out/store').iterdir()] == ['store.json']
    assert not (tmp_path / 'out/store.draft').exists()

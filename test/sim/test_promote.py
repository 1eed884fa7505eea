# SPDX-License-Identifier: Apache-2.0
"""A checkpoint ships only when its evaluation beats the shipped one's; what ships is whole."""

from dataclasses import asdict
import json
from pathlib import Path
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_sim import promote
from worldvla_sim.assets.pack import PACK_VERSION
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.policies import checkpoint_name
from worldvla_sim.results import Results
from worldvla_sim.runner import EvaluationSettings

STATES = 4
CARD = 'card ![a picture](imagined.jpg) ![lost](lost.jpg) ![far](https://far.org/a.png)'


def stand_in(folder, seed):
    """Write a folder that is a checkpoint as far as names and fingerprints go."""
    (folder / 'image_tokenizer').mkdir(parents=True)
    save_file({'weight': np.full(3, seed, np.float32)}, folder / 'model.safetensors')
    (folder / 'image_tokenizer' / 'weights').write_text(str(seed))
    PolicySettings('mini', True).save(folder / POLICY_FILE)
    return folder


def evaluate(folder, file, won, *, complete=True, error=None, states=STATES, **changes):
    """Write the evaluation of a folder that succeeded in the first `won` states."""
    settings = EvaluationSettings('mini', 'libero_object', 'builtin', pack_version=PACK_VERSION,
                                  checkpoint=checkpoint_name(str(folder)))
    Results({**asdict(settings), **changes}, [
        EpisodeRecord('libero_object', 0, 'do it', state, state < won, 100, error, 'builtin')
        for state in range(states)], complete).save(file)


@pytest.fixture
def folders(tmp_path):
    """A shipped checkpoint with 2 of 4 successes, and a new one."""
    shipped = stand_in(tmp_path / 'checkpoints' / 'mini', 1)
    (shipped / 'README.md').write_text(CARD)
    (shipped / 'imagined.jpg').write_bytes(b'picture')
    evaluate(shipped, shipped / 'evaluation' / 'libero_object.json', 2)
    new = stand_in(tmp_path / 'final', 2)
    (new / 'trainer.pt').write_text('large')
    return new, shipped


def command(new, shipped, *files):
    return promote.main([str(new), '--shipped', str(shipped), '--evaluation', *map(str, files)])


def forget(folder, setting):
    """Make the evaluation of a shipped folder one that is older than a setting."""
    file = folder / 'evaluation' / 'libero_object.json'
    content = json.loads(file.read_text())
    del content['settings'][setting]
    file.write_text(json.dumps(content))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def test_an_evaluation_that_is_older_than_a_setting_compares_with_a_new_one(folders, tmp_path):
    new, shipped = folders
    forget(shipped, 'scatter')
    evaluate(new, tmp_path / 'moved.json', 4, scatter=0.05)
    evaluate(new, tmp_path / 'new.json', 4)
    assert command(new, shipped, tmp_path / 'moved.json') == 2, 'of other layouts'
    assert command(new, shipped, tmp_path / 'new.json') == 0


def test_a_better_checkpoint_ships_whole_with_its_evaluation_and_the_old_card(
        folders, tmp_path, capsys):
    new, shipped = folders
    file = tmp_path / 'new.json'
    evaluate(new, file, 3, policy=str(new))
    assert command(new, shipped, file) == 0
    assert '3 of 4' in capsys.readouterr().out
    expected = contents(new) | {'evaluation/libero_object.json': file.read_bytes(),
                                'README.md': CARD.encode(), 'imagined.jpg': b'picture'}
    del expected['trainer.pt']
    assert contents(shipped) == expected
    assert [path.name for path in shipped.parent.iterdir()] == ['mini'], 'no draft is left'
    assert command(new, shipped, file) == 2, 'it is not better than itself'


@pytest.mark.parametrize(('changes', 'message'), [
    ({'won': 2}, 'not better: 2 of 4 of libero_object new, 2 of 4'),
    ({'won': 1}, 'not better'),
    ({'won': 3, 'complete': False}, 'not complete'),
    ({'won': 3, 'error': 'broken'}, '4 errors'),
    ({'won': 5, 'states': 5}, 'episodes: 1 new alone'),
    ({'won': 3, 'states': 3}, 'episodes: 0 new alone, 1 shipped alone'),
    ({'won': 3, 'suite': 'libero_goal'}, 'no evaluation of libero_object'),
    ({'won': 3, 'assets': 'official'}, 'assets:'),
    ({'won': 3, 'over': 'ros'}, 'over:'),
    ({'won': 3, 'pack_version': 'other'}, 'evaluate the new checkpoint as the shipped one was'),
    ({'won': 3, 'mode': 'realtime'}, 'mode:'),
    ({'won': 3, 'checkpoint': 'mini, sha256:0'}, 'evaluate that one')])
def test_what_is_not_shown_to_be_better_changes_nothing(folders, tmp_path, capsys, changes,
                                                        message):
    new, shipped = folders
    evaluate(new, tmp_path / 'new.json', **changes)
    before = contents(shipped)
    assert command(new, shipped, tmp_path / 'new.json') == 2
    assert message in capsys.readouterr().err
    assert contents(shipped) == before


def test_evidence_that_is_older_than_the_packs_version_is_of_the_first_pack(folders, tmp_path):
    new, shipped = folders
    forget(shipped, 'pack_version')
    evaluate(new, tmp_path / 'new.json', 3, pack_version='1.0')
    assert command(new, shipped, tmp_path / 'new.json') == 0


@pytest.mark.parametrize('older', [{'pack_version': '0.9'}, {'fixtures': 'of the seed alone'}])
def test_evidence_that_this_program_cannot_repeat_is_to_be_made_anew(folders, tmp_path, capsys,
                                                                     older):
    """Pins a bug: it asked for an evaluation of the new checkpoint under the older program."""
    new, shipped = folders
    file = shipped / 'evaluation' / 'libero_object.json'
    evaluate(shipped, file, 2, **older)
    evaluate(new, tmp_path / 'new.json', 4)
    assert command(new, shipped, tmp_path / 'new.json') == 2
    said = capsys.readouterr().err
    assert f'{file} is older than this program: delete it' in said
    assert 'as the shipped one was' not in said


def test_a_new_folder_called_like_a_shipped_one_is_taken_for_itself(folders, tmp_path,
                                                                    monkeypatch):
    new, shipped = folders
    new = new.rename(tmp_path / 'worldvla-mini')
    evaluate(new, tmp_path / 'new.json', 3)
    monkeypatch.chdir(tmp_path)
    assert command(new.name, shipped, tmp_path / 'new.json') == 0


def test_a_shipped_checkpoint_without_evidence_of_its_own_is_not_replaced(folders, tmp_path,
                                                                          capsys):
    new, shipped = folders
    evaluate(new, tmp_path / 'new.json', 3)
    (shipped / 'evaluation' / 'libero_object.json').unlink()
    assert command(new, shipped, tmp_path / 'new.json') == 2
    assert 'evaluation has no result file' in capsys.readouterr().err


@pytest.mark.parametrize(('goal', 'object_', 'code'), [
    (10, 11, 0), (11, 10, 0), (12, 9, 0), (15, 6, 0), (11, 9, 2), (20, 5, 2), (10, 10, 2),
    (None, 12, 2)])
def test_it_must_be_better_in_total_and_nowhere_worse_beyond_chance(
        folders, tmp_path, capsys, goal, object_, code):
    """Of 20 episodes with 10 successes four lost ones may be chance (1/16), five are not."""
    new, shipped = folders
    for suite in ('libero_goal', 'libero_object'):
        evaluate(shipped, shipped / 'evaluation' / f'{suite}.json', 10, suite=suite, states=20)
    evaluate(new, tmp_path / 'object.json', object_, states=20)
    files = [tmp_path / 'object.json']
    if goal is not None:
        files.append(tmp_path / 'goal.json')
        evaluate(new, files[-1], goal, suite='libero_goal', states=20)
    assert command(new, shipped, *files) == code
    said = capsys.readouterr()
    if goal is None:
        assert 'no evaluation of libero_goal' in said.err
    else:
        totals = f'{goal} of 20 of libero_goal, {object_} of 20 of libero_object'
        assert totals in said.out + said.err


def test_a_checkpoint_that_does_another_suite_as_well_is_better(folders, tmp_path):
    new, shipped = folders
    evaluate(new, tmp_path / 'object.json', 2)
    evaluate(new, tmp_path / 'goal.json', 0, suite='libero_goal')
    assert command(new, shipped, tmp_path / 'object.json', tmp_path / 'goal.json') == 0
    assert {path.name for path in (shipped / 'evaluation').iterdir()} == {
        'libero_object.json', 'libero_goal.json'}


def test_an_evaluation_in_two_number_formats_is_refused(folders, tmp_path, capsys):
    """A float32 machine that resumes what a bfloat16 one began plays another policy."""
    new, shipped = folders
    evaluate(new, tmp_path / 'new.json', 3)
    content = json.loads((tmp_path / 'new.json').read_text())
    for record, number_format in zip(content['records'], ('float32', *['bfloat16'] * 3),
                                     strict=True):
        record['policy'] = f'mini, {number_format} on cpu, sha256:1'
    (tmp_path / 'new.json').write_text(json.dumps(content))
    assert command(new, shipped, tmp_path / 'new.json') == 2
    assert 'mini, bfloat16 on cpu, sha256:1; mini, float32 on cpu' in capsys.readouterr().err


def test_two_evaluations_of_one_suite_are_refused(folders, tmp_path, capsys):
    new, shipped = folders
    for name in ('a.json', 'b.json'):
        evaluate(new, tmp_path / name, 3)
    assert command(new, shipped, tmp_path / 'a.json', tmp_path / 'b.json') == 2
    assert 'give one for each suite' in capsys.readouterr().err


@pytest.mark.parametrize('failing', [(shutil, 'copytree'), (Path, 'rename')])
def test_a_failure_half_way_leaves_the_shipped_one(folders, tmp_path, monkeypatch, capsys,
                                                   failing):
    new, shipped = folders
    evaluate(new, tmp_path / 'new.json', 3)
    before, original = contents(shipped), getattr(*failing)

    def full(source, target, **options):
        if Path(source).name != 'old' and Path(target).name != 'old':
            raise OSError(28, 'No space left on device')
        return original(source, target, **options)
    monkeypatch.setattr(*failing, full)
    assert command(new, shipped, tmp_path / 'new.json') == 2
    assert 'No space left on device' in capsys.readouterr().err
    assert contents(shipped) == before
    assert [path.name for path in shipped.parent.iterdir()] == ['mini']

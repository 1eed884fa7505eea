# SPDX-License-Identifier: Apache-2.0
"""Rows of an ablation that were made with something else do not count as those of today."""

import errno
import json
from pathlib import Path
import re
import shutil

from ablation_rows import finish, plan_file
import pytest

from worldvla_ros.training.store import HEADER_FILE
from worldvla_sim import runner
from worldvla_sim.ablation import __main__ as command
from worldvla_sim.ablation import run
from worldvla_sim.ablation.origins import changes, note
from worldvla_sim.ablation.plan import load_plan


def test_a_row_that_was_made_with_another_plan_is_not_shown_as_this_one(
        tmp_path, capsys, fake_processes):
    arguments = ['--config', str(plan_file(tmp_path))]
    assert command.main(arguments) == 0
    assert '1/2' in capsys.readouterr().out
    plan_file(tmp_path, scale={'steps': 2.0})
    assert command.main([*arguments, '--report']) == 1
    assert '1/2' not in capsys.readouterr().out
    assert command.main([*arguments, '--rows', 'plain']) == 1
    assert 'run.steps: 4 -> 8' in capsys.readouterr().out


def finished(file):
    """Names of the rows that count as finished."""
    plan = load_plan(file)
    return {row.name for row in plan.rows if run.outcome(row, plan).finished}


def test_a_row_of_other_data_does_not_count(tmp_path, capsys, caplog, fake_processes):
    """Pins a bug: a store that was made anew under its old name changed no row."""
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    assert finished(file) == {'plain', 'short', 'two'} and not caplog.text
    header = Path(load_plan(file).rows[0].final.data.store) / HEADER_FILE
    content = header.read_text()
    said = json.loads(content)
    header.write_text(json.dumps({**said, 'data': 'sha256:other'}))
    assert finished(file) == set()
    assert re.search(r'row plain: its episodes do not count \(stage 0, content of data.store: .*'
                     r"-> 'sha256:other'\)", caplog.text)
    assert command.main(['--config', str(file)]) == 1
    assert 'other data' in capsys.readouterr().out
    header.rename(header.with_name('moved'))  # a report needs no store
    assert finished(file) == {'plain', 'short', 'two'}


def test_a_row_of_other_weights_does_not_count(tmp_path, caplog, capsys, fake_processes):
    """Pins a bug: the episodes of weights that were there before stood for those of today."""
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    plain, _, two = load_plan(file).rows
    finish(plain.final.run.output, plain.final.run.steps, weight=1)
    first = two.stages[0].run
    finish(first.output, first.steps, weight=1)
    assert finished(file) == {'short'}
    assert 'row plain: its episodes do not count (checkpoint:' in caplog.text
    assert 'row two: its episodes do not count (stage 1, content of model.init_from:' in (
        caplog.text)
    assert command.main(['--config', str(file)]) == 1
    assert 'evaluation.json is of another checkpoint' in capsys.readouterr().out
    (plain_results := tmp_path / 'ablation/rows/plain/evaluation.json').unlink()
    assert command.main(['--config', str(file), '--rows', 'plain']) == 0 and plain_results.exists()


@pytest.mark.parametrize('stage', [0, 1])
def test_a_row_with_a_stage_that_is_not_trained_does_not_count(tmp_path, caplog, fake_processes,
                                                               stage):
    """Pins a bug: the results of a checkpoint that was gone counted on."""
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    shutil.rmtree(load_plan(file).rows[2].stages[stage].run.output)
    assert finished(file) == {'plain', 'short'}
    assert f'stage {stage} is not trained to its last step' in caplog.text


def test_a_row_of_another_asset_pack_does_not_count(tmp_path, monkeypatch, fake_processes):
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    monkeypatch.setattr(runner, 'PACK_VERSION', 'other')
    assert finished(file) == set()


def test_a_row_with_the_fixtures_of_an_older_program_does_not_count(tmp_path, caplog,
                                                                    fake_processes):
    """Pins a bug: its episodes stood in one table with those that were played since."""
    file = plan_file(tmp_path, evaluation={'suite': 'libero_goal', 'tasks': [1], 'init_states': 2})
    assert command.main(['--config', str(file)]) == 1, 'the stand-ins say nothing of fixtures'
    assert finished(file) == set()
    assert "fixtures: 'of the seed alone' -> 'of seed and initial state'" in caplog.text


def test_a_stage_that_is_older_than_the_note_of_its_data_still_counts(tmp_path, fake_processes):
    file = plan_file(tmp_path)
    assert command.main(['--config', str(file)]) == 0
    for noted in (tmp_path / 'ablation').rglob('*.origin'):
        noted.unlink()
    assert finished(file) == {'plain', 'short', 'two'}


def test_a_note_is_written_whole_and_once(tmp_path, monkeypatch):
    """Pins a bug: each resume wrote the settings anew, and a full disk emptied them."""
    stage = load_plan(plan_file(tmp_path)).rows[0].final
    file = tmp_path / 'stage0.yaml'

    def full(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patched:
        patched.setattr(Path, 'write_text', full)
        with pytest.raises(OSError, match='No space'):
            note(stage, file)
    assert not list(tmp_path.glob('*stage0*'))
    note(stage, file)
    monkeypatch.setattr(Path, 'write_text', full)
    note(stage, file)
    assert changes(stage, file) == [] and file.with_suffix('.origin').exists()


@pytest.mark.parametrize('name', ['stage0.yaml', 'stage0.origin'])
def test_a_note_that_cannot_be_read_is_named(tmp_path, capsys, fake_processes, name):
    """Pins a bug: an emptied one ended the ablation without a word of which file it was."""
    arguments = ['--config', str(plan_file(tmp_path))]
    assert command.main(arguments) == 0
    emptied = tmp_path / 'ablation' / 'rows' / 'short' / name
    emptied.write_text('')
    assert command.main(arguments) == 2
    assert f'the note {emptied} is damaged' in (said := capsys.readouterr().err)
    assert 'delete it' in said
    emptied.unlink()
    assert command.main(arguments) == 0

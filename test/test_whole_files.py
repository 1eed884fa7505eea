# SPDX-License-Identifier: Apache-2.0
"""A file is whole or as it was before."""

import os
from pathlib import Path

import pytest
import torch

from worldvla_ros.model.weight_files import write_safetensors
from worldvla_ros.whole_files import draft_folder, write_whole


def test_the_target_appears_with_the_last_byte(tmp_path):
    target = tmp_path / 'table.json'

    def write(draft):
        draft.write_text('{')
        assert not target.exists()
        draft.write_text('{}')
    write_whole(target, write)
    assert target.read_text() == '{}'
    assert list(tmp_path.iterdir()) == [target]


def test_a_target_stays_as_it_was_when_its_successor_cannot_be_written(tmp_path):
    target = tmp_path / 'table.json'
    target.write_text('{}')

    def write(draft):
        draft.write_text('{')
        raise OSError('No space left on device')
    with pytest.raises(OSError, match='No space left'):
        write_whole(target, write)
    assert target.read_text() == '{}'
    assert list(tmp_path.iterdir()) == [target]


def test_content_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    """Pins a bug: a power cut just after the renaming left an empty file."""
    events = []
    monkeypatch.setattr(os, 'fsync', lambda file: events.append(
        (Path(f'/proc/self/fd/{file}').readlink(), target.exists())))
    target = tmp_path / 'table.json'
    write_whole(target, lambda draft: draft.write_text('{}'))
    (draft, before), (folder, after) = events
    assert (draft.parent, draft.suffix, before) == (tmp_path, '.json', False)
    assert (folder, after) == (tmp_path, True)


def test_a_folder_that_cannot_be_flushed_keeps_its_new_file(tmp_path, monkeypatch):
    def fsync(file):
        if Path(f'/proc/self/fd/{file}').is_dir():
            raise OSError(22, 'Invalid argument')
    monkeypatch.setattr(os, 'fsync', fsync)
    write_whole(tmp_path / 'table.json', lambda draft: draft.write_text('{}'))
    assert (tmp_path / 'table.json').read_text() == '{}'


def test_writers_that_choose_a_format_by_suffix_find_it_on_the_draft(tmp_path):
    suffixes = []

    def write(draft):
        suffixes.append(draft.suffix)
        draft.touch()
    write_whole(tmp_path / 'curve.png', write)
    write_whole(tmp_path / 'README', write)
    assert suffixes == ['.png', '']


def test_others_may_read_a_folder_and_weights_that_were_drafted(tmp_path):
    ordinary = tmp_path / 'ordinary'
    ordinary.mkdir()
    (ordinary / 'file').touch()
    draft = draft_folder(tmp_path, '.draft-')
    write_safetensors({'weight': torch.zeros(2)}, draft / 'model.safetensors')
    assert draft.stat().st_mode == ordinary.stat().st_mode
    assert (draft / 'model.safetensors').stat().st_mode == (ordinary / 'file').stat().st_mode
    assert draft_folder(tmp_path, '.draft-') != draft

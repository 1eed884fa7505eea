# SPDX-License-Identifier: Apache-2.0
"""ROS domains are claimed by one user of them at a time."""

import itertools
import os
from pathlib import Path
import stat
import tempfile

import pytest

from worldvla_ros.errors import WorldVLAError
from worldvla_sim.ros import domains


def test_a_domain_is_claimed_once_whatever_temp_folder_each_has(monkeypatch, tmp_path):
    monkeypatch.setattr(domains, '_DOMAINS', (5001, 5002))  # which no real graph uses
    with domains.claimed_domain() as one:
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
        with domains.claimed_domain() as other:
            assert {one, other} == {5001, 5002}
            with pytest.raises(WorldVLAError, match='all 2 ROS domains'), \
                    domains.claimed_domain():
                pass
        with domains.claimed_domain() as again:
            assert again == other


def test_a_process_does_not_take_the_domain_again_that_it_has_just_left():
    claims = []
    for _ in range(2):
        with domains.claimed_domain() as domain:
            claims.append(domain)
    assert claims[0] != claims[1], 'its nodes may still be ending there'
    assert all(1 <= domain <= 100 for domain in claims)


def test_a_domain_after_one_that_another_has_is_not_taken_twice_in_a_row(monkeypatch):
    """Pins a bug: the next claim began at the one that the last had got in its second attempt."""
    monkeypatch.setattr(domains, '_DOMAINS', (5006, 5007, 5008))
    monkeypatch.setattr(domains, '_attempts', itertools.count())
    with domains.claimed_domain() as another:
        assert another == 5006
        monkeypatch.setattr(domains, '_attempts', itertools.count())
        claims = []
        for _ in range(2):
            with domains.claimed_domain() as domain:
                claims.append(domain)
    assert claims == [5007, 5008]


def test_the_domain_of_the_shell_is_left_to_the_robot(monkeypatch):
    """Pins a bug: an evaluation could start its nodes in the exported domain of a real robot."""
    monkeypatch.setattr(domains, '_DOMAINS', (5003, 5004))
    monkeypatch.setenv('ROS_DOMAIN_ID', '5003')
    for _ in range(2):
        with domains.claimed_domain() as domain:
            assert domain == 5004


def test_what_another_user_of_the_machine_has_claimed_is_taken(monkeypatch):
    """Pins a bug: the names of the locks held the user's id, so two users shared domains."""
    monkeypatch.setattr(domains, '_DOMAINS', (5005,))
    with domains.claimed_domain():
        monkeypatch.setattr(os, 'getuid', lambda: 54321)
        with pytest.raises(WorldVLAError, match='all 1 ROS domains'), domains.claimed_domain():
            pass


@pytest.fixture
def locks(monkeypatch, tmp_path):
    """Two domains of which no file is there yet; the prefix of their files."""
    monkeypatch.setattr(domains, '_LOCKS', str(tmp_path / 'domain'))
    monkeypatch.setattr(domains, '_DOMAINS', (5006, 5007))
    return tmp_path


def test_all_users_may_lock_a_file_whatever_the_umask_of_who_made_it(locks):
    before = os.umask(0o077)
    try:
        with domains.claimed_domain() as domain:
            made = locks / f'domain_{domain}.lock'
            assert stat.S_IMODE(made.stat().st_mode) == 0o666
    finally:
        os.umask(before)
    made.chmod(0o444)  # as that of another user, who may let others read alone
    with domains.claimed_domain() as one, domains.claimed_domain() as other:
        assert {one, other} == {5006, 5007}


def test_a_file_that_cannot_be_opened_costs_its_domain_alone(locks):
    Path(locks, 'domain_5006.lock').symlink_to('/nowhere')
    for _ in range(2):
        with domains.claimed_domain() as domain:
            assert domain == 5007

# SPDX-License-Identifier: Apache-2.0
"""ROS domains are claimed by one user of them at a time."""

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

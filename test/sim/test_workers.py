# SPDX-License-Identifier: Apache-2.0
"""The pool of processes outlives what its workers die of, and tells it."""

from dataclasses import dataclass
import os
from pathlib import Path
import time

import pytest

from worldvla_ros.errors import ConfigError
from worldvla_sim.workers import JobFailure, WorkerPool


def square(number):
    """A job for the pool: fails, dies or answers."""
    if number == 3:
        raise ValueError('three')
    if number == 4:
        os._exit(9)
    return number * number


def make_square():
    return square


class Spoiled:
    """A handler that is of no use any more once anything but an error of ours was raised."""

    def __init__(self):
        self.spoiled = False

    def __call__(self, number):
        if number < 2:
            self.spoiled = number == 1
            raise [ConfigError, RuntimeError][number]('out of something')
        return self.spoiled

    def close(self):
        raise RuntimeError('nor can it be closed')


def where_is_temp():
    import tempfile
    return lambda _: (tempfile.gettempdir(), os.environ['OMP_NUM_THREADS'])


@dataclass(frozen=True)
class Unmakeable:
    """Makes a handler, but not in the first processes that try."""

    folder: str
    failures: int
    seconds: float = 0.0

    def __call__(self):
        for number in range(self.failures):
            try:
                (Path(self.folder) / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            time.sleep(self.seconds)
            raise ConfigError('no assets here')
        return square


def test_pool_names_the_job_that_raised_or_killed_its_worker_and_finishes_the_rest(capfd):
    answers = dict(WorkerPool(make_square, 2).run(range(7)))
    assert {job: answer for job, answer in answers.items() if job not in (3, 4)} == {
        job: job * job for job in (0, 1, 2, 5, 6)}
    assert answers[3] == JobFailure('ValueError: three')
    assert 'exit code 9' in answers[4].reason
    assert 'ValueError' in capfd.readouterr().err


def test_a_handler_that_raised_what_nobody_expects_is_made_anew_for_the_next_job():
    answers = dict(WorkerPool(Spoiled, 1).run(range(4)))
    assert [answer.reason.partition(':')[0] for answer in (answers[0], answers[1])] == [
        'ConfigError', 'RuntimeError']
    assert [answers[2], answers[3]] == [False, False]


def test_workers_have_one_thread_and_a_private_temp_folder_that_goes_away():
    (_, (folder, threads)), = WorkerPool(where_is_temp, 1).run([0])
    assert 'worldvla_worker_' in folder
    assert not Path(folder).exists()
    assert threads == os.environ.get('OMP_NUM_THREADS', '1')


def test_a_worker_that_cannot_make_its_handler_leaves_its_jobs_to_the_others(tmp_path):
    """It failed all jobs of the queue, as fast as it could, beside one that was at its first."""
    jobs = [0, 1, 2, 5, 6, 7]
    answers = dict(WorkerPool(Unmakeable(str(tmp_path), 2), 3).run(jobs))
    assert answers == {job: job * job for job in jobs}


@pytest.mark.parametrize('workers', [1, 2])
def test_where_no_worker_can_make_its_handler_every_job_says_why(tmp_path, workers):
    answers = dict(WorkerPool(Unmakeable(str(tmp_path), 100), workers).run(range(5)))
    assert sorted(answers) == [*range(5)]
    assert {answer.reason for answer in answers.values()} == {'ConfigError: no assets here'}


def test_a_job_is_not_left_to_a_worker_that_is_dead(tmp_path):
    """The one that could play had died of its last job when the other found out that it cannot."""
    answers = list(WorkerPool(Unmakeable(str(tmp_path), 1, seconds=4.0), 2).run([4, 4]))
    assert [job for job, _ in answers] == [4, 4]
    assert 'exit code 9' in answers[0][1].reason
    assert answers[1][1].reason == 'ConfigError: no assets here'

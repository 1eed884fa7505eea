# SPDX-License-Identifier: Apache-2.0
"""Batches that are made ahead: in order, however many make them, and to the end when stopped."""

from dataclasses import replace
import os
from pathlib import Path
import signal
import time

import pytest
from training_runs import tiny_config, weights

from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.loading import AHEAD, made_ahead, made_by_threads
from worldvla_ros.training.run_folder import RunFolder
from worldvla_ros.training.train import train
from worldvla_ros.training.trainer import Trainer


def slower_for_even(step):
    time.sleep(0.01 * (step % 2 == 0))
    return step, os.getpid()


@pytest.mark.parametrize('steps', [range(0), range(1), range(3, 20)])
def test_threads_keep_the_order(steps):
    for threads in (1, 4):
        with made_by_threads(slower_for_even, steps, threads) as made:
            assert [step for step, _ in made] == list(steps)


@pytest.mark.parametrize('processes', [0, 2])
def test_processes_keep_the_order_and_are_others(processes):
    with made_ahead(slower_for_even, range(2, 12), processes) as made:
        steps, makers = zip(*made, strict=True)
    assert steps == tuple(range(2, 12))
    assert len(set(makers) - {os.getpid()}) == processes


def test_no_more_is_made_than_asked_for():
    made_steps = []
    with made_by_threads(made_steps.append, range(100), AHEAD) as made:
        next(made)
        time.sleep(0.1)
    assert len(made_steps) <= AHEAD + 1


def test_what_fails_in_a_thread_is_raised_where_it_is_used():
    def fails(step):
        raise ValueError(f'no batch for step {step}')
    with pytest.raises(ValueError, match='step 7'), made_by_threads(fails, range(7, 9), 2) as made:
        next(made)


@pytest.mark.parametrize('processes', [0, 2])
def test_a_data_error_is_told_in_its_own_words_whoever_makes_the_batches(processes):
    """Pins a bug: from another process it came with a traceback of 25 lines as its message."""
    def fails(step):
        raise DatasetError(f'no batch for step {step}')
    before = children()
    with pytest.raises(DatasetError, match=r'\Ano batch for step 7\Z'), \
            made_ahead(fails, range(7, 9), processes) as made:
        next(made)
    del made
    assert not children() - before


def test_the_same_is_learned_whoever_makes_the_batches(tmp_path):
    alone = tiny_config(tmp_path, steps=3, code_noise=0.1)
    shared = replace(alone, run=replace(alone.run, output=str(tmp_path / 'shared'),
                                        loader_processes=2))
    assert weights(train(alone)) == weights(train(shared))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_stop_that_reaches_all_processes_saves_the_step_that_is_done(tmp_path, number):
    """`timeout` and Ctrl-C send the signal to the processes that make batches, too."""
    config = tiny_config(tmp_path, steps=50)
    config = replace(config, run=replace(config.run, save_every=100, loader_processes=2))
    trainer = Trainer(build_experiment(config))
    step, before = trainer.train_step, children()

    def stopped_in_the_tenth(batch):
        if trainer.step == 9:
            loaders = children() - before
            assert len(loaders) >= 2
            for process in loaders:
                os.kill(process, number)
            signal.raise_signal(number)
            time.sleep(0.2)
        return step(batch)
    trainer.train_step = stopped_in_the_tenth
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert RunFolder(config).latest().name == 'step-00000010'
    assert not children() - before


def children():
    """Return the processes that this one has; tests before may have left some that serve it."""
    listed = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children')
    return {int(number) for number in listed.read_text().split()}

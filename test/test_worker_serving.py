# SPDX-License-Identifier: Apache-2.0
"""What an inference worker answers when its policy fails, and says while it prepares."""

import logging
from multiprocessing import Pipe

import pytest
import torch

from worldvla_ros.inference.messages import Prepare, Progress, Request, Stop
from worldvla_ros.inference.shared_frames import FrameSlot, SharedFrames
from worldvla_ros.inference.worker import progress_sent, serve


def test_what_is_logged_in_the_warm_up_is_progress():
    ours, theirs = Pipe()
    logger = logging.getLogger('worldvla_ros.model.engine.graphs')
    with progress_sent(theirs):
        logger.info('captured the graph %s', 'a')
    logger.info('later')
    assert ours.recv() == Progress('captured the graph a')
    assert not ours.poll()


class BrokenPolicy:
    """A policy that fails with a given error."""

    def __init__(self, error):
        self._error = error

    def predict_chunk(self, observation):
        raise self._error

    def prepare(self, frames, instruction):
        raise self._error


def served(error, *messages):
    """Return what a worker of a broken policy says to some messages before it is told to stop."""
    ours, theirs = Pipe()
    for message in (*messages, Stop()):
        ours.send(message)
    frames = SharedFrames(1000)
    try:
        serve(theirs, frames, BrokenPolicy(error), None)
    finally:
        frames.close()
    return [ours.recv() for _ in messages]


def test_a_worker_without_memory_for_one_request_lives_on():
    for error in (torch.OutOfMemoryError('no memory'), ValueError('a bug')):
        answer, = served(error, Request(7, (), 'go'))
        assert (answer.number, answer.chunk) == (7, None) and str(error) in answer.error


HINT = Prepare((FrameSlot(0, 1, 1, 0),), 'go')


@pytest.mark.parametrize('message', [Request(7, (), 'go'), HINT])
def test_a_worker_whose_device_is_lost_does_not_live_on(message):
    """Pins a bug: after an assertion in a kernel it stayed READY and failed for ever."""
    with pytest.raises(torch.AcceleratorError, match='device-side assert'):
        served(torch.AcceleratorError('device-side assert triggered'), message)


def test_a_hint_that_fails_is_no_matter():
    answered, = served(ValueError('a bug'), HINT)
    assert 'a bug' in answered.detail

# SPDX-License-Identifier: Apache-2.0
"""Real inference workers for tests: how to start them, ask them, and see that they are gone."""

from dataclasses import replace
from pathlib import Path
import time

import numpy as np

from worldvla_ros.datatypes import Frame, Observation
from worldvla_ros.inference.backend import Health
from worldvla_ros.inference.messages import WorkerSettings
from worldvla_ros.inference.worker_backend import WorkerBackend

ROOT = Path(__file__).parents[1]
PERIOD = 50_000_000
SETTINGS = WorkerSettings(checkpoint='random', subfolder='', settings='', device='cpu',
                          dtype='float32', weights='dense', num_actions=0, threads=1,
                          frame_memory=1_000_000)
NO_CHECKPOINT = replace(SETTINGS, checkpoint='/nowhere/at/all')
FOREVER = 60.0


def new_backend(settings=SETTINGS, **options):
    return WorkerBackend(settings, **{
        'load_timeout': FOREVER, 'answer_timeout': FOREVER, 'imagine_timeout': FOREVER,
        'heartbeat_timeout': FOREVER,
        'max_restarts': 100, 'restart_window': FOREVER, **options})


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (256, 256, 3), np.uint8)


def observation(seed=0, instruction='pick up the milk and place it in the basket'):
    return Observation((Frame(noise(seed), PERIOD), Frame(noise(seed + 1), 2 * PERIOD)),
                       instruction)


def wait_for(predicate, timeout=FOREVER):
    deadline = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.01)


def result_of(backend, request, timeout=FOREVER):
    """Poll until a request is answered."""
    results = []
    wait_for(lambda: results.extend(backend.poll()) or results, timeout)
    assert [one.request for one in results] == [request]
    return results[0]


def ask(backend, request, asked=None):
    backend.submit(request, asked or observation())
    return result_of(backend, request)


def wait_until_ready(backend):
    wait_for(lambda: backend.poll() or backend.health is Health.READY)

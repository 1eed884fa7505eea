# SPDX-License-Identifier: Apache-2.0
"""Make the backend that the parameters name."""

from collections.abc import Callable

from worldvla_ros.inference.backend import Backend
from worldvla_ros.inference.messages import WorkerSettings
from worldvla_ros.nodes.parameters import PolicyParameters


def make_backend(parameters: PolicyParameters, on_result: Callable[[], None]) -> Backend:
    """Return an unstarted backend. Raises CheckpointError for an unreadable recording."""
    name = parameters.backend
    if name == 'mock' or name == 'replay':
        from worldvla_ros.inference.scripted_backends import mock_backend, replay_backend
        if name == 'mock':
            return mock_backend(latency=parameters.script_latency, on_result=on_result)
        return replay_backend(parameters.replay_path, latency=parameters.script_latency,
                              on_result=on_result)
    settings = worker_settings(parameters)
    if name == 'inproc':
        from worldvla_ros.inference.inproc_backend import InprocBackend
        return InprocBackend(settings, on_result=on_result)
    from worldvla_ros.inference.worker_backend import WorkerBackend
    worker = parameters.worker
    return WorkerBackend(
        settings, load_timeout=worker.load_timeout, answer_timeout=worker.answer_timeout,
        imagine_timeout=worker.imagine_timeout, heartbeat_timeout=worker.heartbeat_timeout,
        max_restarts=worker.max_restarts, restart_window=worker.restart_window,
        python=worker.python, on_result=on_result)


def describe_backend(parameters: PolicyParameters) -> str:
    """Say what `make_backend` and the start of its backend will do, for the log."""
    if parameters.backend == 'mock':
        return 'starting without a model (backend mock)'
    if parameters.backend == 'replay':
        return f'reading recorded chunks from {parameters.replay_path!r} (backend replay)'
    return f'loading the policy {parameters.checkpoint!r} (backend {parameters.backend})'


def worker_settings(parameters: PolicyParameters) -> WorkerSettings:
    """Collect what the process that loads the policy needs to know."""
    return WorkerSettings(
        checkpoint=parameters.checkpoint, subfolder=parameters.subfolder,
        settings=parameters.settings,
        device=parameters.device, dtype=parameters.dtype, weights=parameters.weights,
        drafts=parameters.drafts, num_actions=parameters.num_actions,
        threads=parameters.worker.threads,
        frame_memory=parameters.worker.frame_memory_mb * 1_000_000,
        world_model=parameters.world_model, control_period=1.0 / parameters.control.rate)

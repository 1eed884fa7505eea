# SPDX-License-Identifier: Apache-2.0
"""Every ROS test runs in a ROS domain of its own, on this machine only."""

import contextlib
import threading
import time

import pytest

from worldvla_sim.ros.domains import claimed_domain

try:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    import worldvla_ros.msg  # noqa: F401  the tests need it
except ImportError as error:
    MISSING = f'{error}; `. tools/env.sh` first, or `make test`'
else:
    MISSING = ''


class SkippedModule(pytest.Module):
    """A module of tests that cannot be imported here."""

    def collect(self):
        """Skip all its tests and say why."""
        pytest.skip(MISSING, allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    """Skip the tests of this folder where ROS or the built messages are missing."""
    return SkippedModule.from_parent(parent, path=module_path) if MISSING else None


@contextlib.contextmanager
def _claim_domain(monkeypatch, log_folder):
    """Yield a domain that nothing else uses at the same time; child processes inherit it."""
    with claimed_domain() as domain:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
        monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        monkeypatch.delenv('ROS_STATIC_PEERS', raising=False)
        monkeypatch.setenv('ROS_LOG_DIR', str(log_folder))
        yield domain


@pytest.fixture
def domain_id(monkeypatch, tmp_path):
    """A domain that no test uses at the same time; child processes inherit it."""
    with _claim_domain(monkeypatch, tmp_path / 'log') as domain:
        yield domain


@pytest.fixture(scope='module')
def claim_domain(tmp_path_factory):
    """Call it for a domain of a whole module; for what takes long to start."""
    with contextlib.ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        yield lambda: stack.enter_context(
            _claim_domain(monkeypatch, tmp_path_factory.mktemp('log')))


@pytest.fixture
def context(domain_id):
    """An initialized ROS context; give it to every node."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain_id)
    yield context
    context.try_shutdown()


@pytest.fixture
def executor(context):
    """A SingleThreadedExecutor, as in production, that spins on a thread until the test ends."""
    executor = SingleThreadedExecutor(context=context)
    thread = threading.Thread(target=executor.spin, daemon=True, name='test executor')
    thread.start()

    def halt():
        """Stop to spin; only then can a node be taken away without a race."""
        if thread.is_alive():
            executor.shutdown(timeout_sec=10)
            thread.join(10)
            assert not thread.is_alive(), 'a callback does not return'
    executor.halt = halt
    yield executor
    halt()


@pytest.fixture
def spin(executor):
    """Spin a node until the test ends; it is closed, if it can be, and destroyed then."""
    nodes = []

    def spin(node):
        nodes.append(node)
        executor.add_node(node)
        return node
    yield spin
    executor.halt()
    for node in reversed(nodes):
        if hasattr(node, 'close'):
            node.close()
        node.destroy_node()


@pytest.fixture
def wait_for():
    """Wait until a predicate holds; the test fails if it does not within a timeout [s]."""
    def wait_for(predicate, timeout=20.0):
        deadline = time.monotonic() + timeout
        while not (value := predicate()):
            assert time.monotonic() < deadline, f'not within {timeout:g} s'
            time.sleep(0.005)
        return value
    return wait_for


@pytest.fixture
def client(context, spin, wait_for):
    """Camera, operator and robot of a policy node."""
    from policy_client import PolicyClient
    return PolicyClient(context, spin, wait_for)


@pytest.fixture
def start_policy(context, executor, spin, client):
    """Start a policy node with parameters and wait until it publishes."""
    from policy_client import overrides

    from worldvla_ros.nodes.policy_node import PolicyNode

    def start_policy(**values):
        node = spin(PolicyNode(executor, context=context,
                               parameter_overrides=overrides(**values)))
        if values.get('autostart', True):
            client.wait_until_active()
        return node
    return start_policy


@pytest.fixture
def running(start_policy, client):
    """Return a client whose policy moves the robot."""
    start_policy()
    client.camera_on()
    client.instruct()
    client.next_motion()
    return client

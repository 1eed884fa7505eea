# SPDX-License-Identifier: Apache-2.0
"""What runs a node: it leaves nothing behind, says what is wrong, and shows what is logged."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import gc, os, signal
from rclpy.node import Node
from worldvla_ros.nodes.runtime import run_node

class Busy(Node):
    def __init__(self, executor):
        super().__init__('busy')
        self.calls, self.objects = 0, []
        self.create_timer(0.001, self.tick)

    def tick(self):
        self.calls += 1
        if self.calls in (500, 1500):
            gc.collect()
            self.objects.append(len(gc.get_objects()))
        if self.calls == 1500:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        print(self.objects[1] - self.objects[0])

run_node(Busy)
"""


LOGGING = """
import logging, os, signal
from rclpy.node import Node
from worldvla_ros.nodes.runtime import run_node

class Talking(Node):
    def __init__(self, executor):
        super().__init__('talking')
        self.create_timer(0.01, self.talk)

    def talk(self):
        logger = logging.getLogger('worldvla_ros.somewhere')
        logger.debug('a step of %s', 'the warm-up')
        logger.error('a fault')
        os.kill(os.getpid(), signal.SIGTERM)

run_node(Talking)
"""


def test_memory_does_not_grow_with_the_number_of_callbacks(domain_id):
    """Pins a bug: rclpy keeps a function for each of them where a future is waited for."""
    done = subprocess.run([sys.executable, '-c', PROGRAM], cwd=ROOT, capture_output=True,
                          text=True, timeout=60, check=True,
                          env={**os.environ, 'ROS_DOMAIN_ID': str(domain_id)})
    assert int(done.stdout) < 200, 'of 1000 callbacks'


@pytest.mark.parametrize('level, told', [('debug', True), ('info', False)])
def test_what_the_parts_without_ros_log_is_in_the_log_of_ros(domain_id, level, told):
    """Pins a bug: the worker's tracebacks, meant for the debug log, went nowhere."""
    done = subprocess.run([sys.executable, '-c', LOGGING, '--ros-args', '--log-level', level],
                          cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
                          env={**os.environ, 'ROS_DOMAIN_ID': str(domain_id)})
    assert '[talking.somewhere]: a fault' in done.stderr
    assert ('a step of the warm-up' in done.stderr) == told


@pytest.mark.parametrize('arguments', [['-r', 'foo'], ['--params-file', '/nowhere.yaml']])
def test_wrong_ros_arguments_are_an_error_and_no_traceback(domain_id, arguments):
    """Pins a bug: what was wrong stood at the end of the last line of a traceback."""
    done = subprocess.run([sys.executable, '-c', 'import sys\nfrom worldvla_ros.nodes.runtime '
                           'import run_node\nsys.exit(run_node(None))', '--ros-args', *arguments],
                          cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, 'ROS_DOMAIN_ID': str(domain_id)})
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert 'cannot start: ' in done.stderr and arguments[-1] in done.stderr


def test_arguments_that_are_none_of_ros_are_refused(domain_id):
    """Pins a bug: `-p limits.max_translation:=0.001` without --ros-args was lost in silence."""
    done = subprocess.run([sys.executable, '-c', 'from worldvla_ros.nodes.runtime import run_node'
                           '\nrun_node(None)', '-p', 'limits.max_translation:=0.001'],
                          cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, 'ROS_DOMAIN_ID': str(domain_id)})
    assert done.returncode == 2
    assert 'limits.max_translation' in done.stderr and '--ros-args -p NAME' in done.stderr

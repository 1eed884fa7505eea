# SPDX-License-Identifier: Apache-2.0
"""What runs a node leaves nothing behind with each callback."""

import os
from pathlib import Path
import subprocess
import sys

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


def test_memory_does_not_grow_with_the_number_of_callbacks(domain_id):
    """Pins a bug: rclpy keeps a function for each of them where a future is waited for."""
    done = subprocess.run([sys.executable, '-c', PROGRAM], cwd=ROOT, capture_output=True,
                          text=True, timeout=60, check=True,
                          env={**os.environ, 'ROS_DOMAIN_ID': str(domain_id)})
    assert int(done.stdout) < 200, 'of 1000 callbacks'

# SPDX-License-Identifier: Apache-2.0
"""`make bench`: speed of the bridge, of the camera path, and of the command publisher.

Three measurements, each with the real programs as processes and this process as their peer:
the bridge answered at once by a fixed command; a camera process whose frames are timed at the
callback; and the policy node at 20 Hz while its worker never rests.
"""

import argparse
from array import array
from collections.abc import Callable
from pathlib import Path
import subprocess
import sys
import tempfile
import time

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import BRIDGE_NODE, POLICY_NODE, NodeSpec, policy_graph, sim_graph
from worldvla_ros.msg import DeltaAction
from worldvla_ros.nodes.conversions import image_to_frame, to_ns
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.srv import ResetEpisode

CAMERA_RATE = 30.0  # [Hz]
SIZE = 256  # [px]
TARGETS = {'bridge_steps_per_s': '>= 60', 'camera_to_callback_p50_ms': '<= 2',
           'publisher_period_error_p99_ms': '<= 5'}


def spin_for(node: Node, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
    """Spin until the time is over or the condition holds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not done():
        rclpy.spin_once(node, timeout_sec=0.05)


def bench_bridge(node: Node, logs: Path, steps: int) -> dict[str, float]:
    """Answer every frame at once, with a small motion; return control steps per second."""
    spec, = sim_graph({'assets': 'builtin'})
    stamps: list[float] = []
    commands = node.create_publisher(DeltaAction, f'/{POLICY_NODE}/action', 10)

    def on_image(message: Image) -> None:
        stamps.append(time.monotonic())
        command = DeltaAction(header=message.header, gripper=-1.0, chunk_sequence=1)
        command.translation.z = 0.005 if len(stamps) % 20 < 10 else -0.005
        commands.publish(command)
    with ProcessGroup([spec], logs):
        node.create_subscription(Image, 'camera/agentview/image_raw', on_image,
                                 qos_profile_sensor_data)
        reset = node.create_client(ResetEpisode, f'/{BRIDGE_NODE}/reset')
        reset.wait_for_service(30.0)
        answer = reset.call_async(ResetEpisode.Request(suite='libero_object'))
        spin_for(node, 90.0, answer.done)
        spin_for(node, 60.0, lambda: len(stamps) > steps)
    periods = np.diff(stamps[len(stamps) // 5:])
    return {'bridge_steps_per_s': 1 / float(np.median(periods))}


def bench_camera(node: Node, seconds: float) -> dict[str, float]:
    """Time frames of another process from stamp to usable frame."""
    latencies: list[float] = []

    def on_image(message: Image) -> None:
        image_to_frame(message)
        latencies.append((time.time_ns() - to_ns(message.header.stamp)) * 1e-6)
    node.create_subscription(Image, 'bench/image', on_image, qos_profile_sensor_data)
    camera = subprocess.Popen([sys.executable, __file__, '--camera', 'bench/image'])
    try:
        spin_for(node, seconds + 3.0, lambda: len(latencies) > seconds * CAMERA_RATE)
    finally:
        camera.kill()
        camera.wait()
    p50, p99 = np.percentile(latencies[10:], [50, 99])
    return {'camera_to_callback_p50_ms': float(p50), 'camera_to_callback_p99_ms': float(p99)}


def bench_publisher(node: Node, logs: Path, seconds: float) -> dict[str, float]:
    """Let the policy replan at every step, so that its worker is saturated; time the commands."""
    policy, = policy_graph({'image': 'bench/camera'})
    spec = NodeSpec(policy.executable, policy.name, remappings=policy.remappings,
                    parameter_files=policy.parameter_files, parameters={
                        **policy.parameters, 'checkpoint': 'random',  # needs no arm to talk to
                        'control.schedule': 'async',
                        'control.replan_steps': 1, 'obs.frozen_after': -1})
    stamps: list[int] = []
    chunks: set[int] = set()

    def on_action(message: DeltaAction) -> None:
        if message.chunk_sequence:
            chunks.add(message.chunk_sequence)
        stamps.append(to_ns(message.header.stamp))
    instruction = node.create_publisher(String, f'/{POLICY_NODE}/instruction', 10)
    camera = subprocess.Popen([sys.executable, __file__, '--camera', 'bench/camera'])
    try:
        with ProcessGroup([spec], logs):
            node.create_subscription(DeltaAction, f'/{POLICY_NODE}/action', on_action, 100)
            spin_for(node, 90.0, lambda: bool(stamps))
            instruction.publish(String(data='pick up the milk and place it in the basket'))
            spin_for(node, 20.0, lambda: bool(chunks))
            stamps.clear()
            spin_for(node, seconds)
    finally:
        camera.kill()
        camera.wait()
    if len(chunks) < seconds:
        raise WorldVLAError(f'the worker was not saturated: {len(chunks)} chunks in {seconds:g} s')
    errors_ms = np.abs(np.diff(stamps) * 1e-6 - 50.0)
    p50, p99 = np.percentile(errors_ms, [50, 99])
    return {'publisher_period_error_p50_ms': float(p50),
            'publisher_period_error_p99_ms': float(p99), 'chunks_per_s': len(chunks) / seconds}


def run_camera(topic: str) -> None:
    """Publish noise frames with wall time stamps until killed."""
    rclpy.init()
    node = rclpy.create_node('bench_camera')
    publisher = node.create_publisher(Image, topic, qos_profile_sensor_data)
    frames = np.random.default_rng(0).integers(1, 255, (8, SIZE * SIZE * 3), np.uint8)
    pixels = [array('B', frame.tobytes()) for frame in frames]

    def publish() -> None:
        pixels.append(pixels.pop(0))
        publisher.publish(Image(header=Header(stamp=node.get_clock().now().to_msg()), height=SIZE,
                                width=SIZE, encoding='rgb8', step=3 * SIZE, data=pixels[0]))
    node.create_timer(1 / CAMERA_RATE, publish)
    rclpy.spin(node)


def main() -> None:
    """Run all measurements and print a table with the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=15.0)
    parser.add_argument('--steps', type=int, default=250)
    parser.add_argument('--json', type=Path, default=Path('out/bench_ros.json'))
    parser.add_argument('--camera', metavar='TOPIC', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.camera:
        run_camera(options.camera)
        return
    results: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix='worldvla_bench_') as folder:
        logs = Path(folder)
        benches: tuple[Callable[[Node], dict[str, float]], ...] = (
            lambda node: bench_bridge(node, logs, options.steps),
            lambda node: bench_camera(node, options.seconds),
            lambda node: bench_publisher(node, logs, options.seconds))
        for bench in benches:
            rclpy.init()  # each afresh: a second publisher of commands would stop the policy
            results.update(bench(rclpy.create_node('bench')))
            rclpy.shutdown()
    from report import row, save, table_of  # not above: it loads torch, which no camera needs
    rows = [row(name, value, '', target=TARGETS.get(name)) for name, value in results.items()]
    print('\n'.join(table_of(rows)))
    save(options.json, rows, size_px=SIZE, assets='builtin')


if __name__ == '__main__':
    main()

# SPDX-License-Identifier: Apache-2.0
"""The graph of nodes, defined once: the launch files and `make demo` both start it from here.

No ROS is imported: a NodeSpec is plain data, which launch_ros or a subprocess can start.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

PACKAGE = 'worldvla_ros'
POLICY_NODE = 'worldvla_policy'
BRIDGE_NODE = 'libero_bridge'


@dataclass(frozen=True)
class Argument:
    """An argument of a launch file."""

    default: str
    doc: str
    choices: tuple[str, ...] = ()


POLICY_ARGUMENTS = {
    'checkpoint': Argument('random', 'Folder or Hub id of a checkpoint; random: untrained'),
    'device': Argument('cpu', 'Torch device of the worker: cpu, cuda, ...'),
    'image': Argument('image', 'Topic of the third-person camera'),
    'mode': Argument('realtime', 'realtime for robots, lockstep for a waiting simulator',
                     ('realtime', 'lockstep')),
    'use_sim_time': Argument('false', 'Take the time from /clock', ('true', 'false')),
    'params_file': Argument('', 'YAML file of parameters that overrides the defaults'),
}
"""Arguments of policy.launch.py."""

SIM_ARGUMENTS = {
    'mode': Argument('lockstep', 'lockstep waits for commands, realtime does not',
                     ('lockstep', 'realtime')),
    'assets': Argument('auto', 'Meshes and textures', ('auto', 'builtin', 'official')),
    'image_size': Argument('256', 'Side of the camera images [px]'),
    'wrist': Argument('false', 'Publish the wrist camera, too', ('true', 'false')),
}
"""Arguments of sim.launch.py."""

DEMO_ARGUMENTS = {
    'checkpoint': POLICY_ARGUMENTS['checkpoint'],
    'device': POLICY_ARGUMENTS['device'],
    'mode': SIM_ARGUMENTS['mode'],
    'assets': Argument('builtin', 'Meshes and textures', ('auto', 'builtin', 'official')),
}
"""Arguments of demo.launch.py: the policy and the simulator, wired to each other."""


@dataclass(frozen=True)
class NodeSpec:
    """One node of the graph."""

    executable: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    parameter_files: tuple[str, ...] = ()
    remappings: dict[str, str] = field(default_factory=dict)

    def ros_arguments(self) -> list[str]:
        """Return the command line arguments that a ROS node understands."""
        arguments = ['--ros-args', '-r', f'__node:={self.name}']
        for source, target in self.remappings.items():
            arguments += ['-r', f'{source}:={target}']
        for path in self.parameter_files:
            arguments += ['--params-file', path]
        for name, value in self.parameters.items():
            arguments += ['-p', f'{name}:={_yaml(value)}']
        return arguments


def policy_graph(arguments: dict[str, str]) -> list[NodeSpec]:
    """Return the policy node for arguments of POLICY_ARGUMENTS, all given."""
    return [NodeSpec(
        POLICY_NODE, POLICY_NODE,
        parameters={'checkpoint': arguments['checkpoint'], 'device': arguments['device'],
                    'control.mode': arguments['mode'],
                    'use_sim_time': arguments['use_sim_time'] == 'true'},
        parameter_files=(arguments['params_file'],) if arguments['params_file'] else (),
        remappings={'image': arguments['image'],
                    'image/compressed': f'{arguments["image"]}/compressed'})]


def sim_graph(arguments: dict[str, str]) -> list[NodeSpec]:
    """Return the bridge for arguments of SIM_ARGUMENTS, all given."""
    return [NodeSpec(
        BRIDGE_NODE, BRIDGE_NODE,
        parameters={'mode': arguments['mode'], 'assets': arguments['assets'],
                    'image_size': int(arguments['image_size']),
                    'wrist': arguments['wrist'] == 'true'},
        remappings={'action': f'/{POLICY_NODE}/action'})]


def demo_graph(arguments: dict[str, str]) -> list[NodeSpec]:
    """Return policy and bridge, wired, for arguments of DEMO_ARGUMENTS, all given."""
    sim = sim_graph({**defaults(SIM_ARGUMENTS), 'mode': arguments['mode'],
                     'assets': arguments['assets']})
    policy, = policy_graph({
        **defaults(POLICY_ARGUMENTS), 'checkpoint': arguments['checkpoint'],
        'device': arguments['device'], 'mode': arguments['mode'], 'use_sim_time': 'true',
        'image': 'camera/agentview/image_raw'})
    # A simulated camera has no noise, so a still picture does not mean a frozen camera.
    policy.parameters['obs.frozen_after'] = -1
    return [policy, *sim]


def defaults(arguments: dict[str, Argument]) -> dict[str, str]:
    """Return the default of each argument."""
    return {name: argument.default for name, argument in arguments.items()}


def with_defaults(arguments: dict[str, Argument], given: Iterable[tuple[str, str]]) -> dict[
        str, str]:
    """Return the arguments as given, the rest by default."""
    return {**defaults(arguments), **dict(given)}


def _yaml(value: Any) -> str:
    """Write a value so that the ROS command line reads the same value."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)

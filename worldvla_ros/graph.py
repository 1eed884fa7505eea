# SPDX-License-Identifier: Apache-2.0
"""The graph of nodes, defined once: the launch files and `make demo` both start it from here.

No ROS is imported: a NodeSpec is plain data, which launch_ros or a subprocess can start.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.named_checkpoints import RANDOM, SHIPPED, locate_checkpoint
from worldvla_ros.policy.settings import POLICY_FILE, RELEASED, PolicySettings

PACKAGE = 'worldvla_ros'
POLICY_NODE = 'worldvla_policy'
BRIDGE_NODE = 'libero_bridge'


@dataclass(frozen=True)
class Argument:
    """An argument of a launch file."""

    doc: str
    default: str = ''  # empty: as the parameter file says, else as the node's own default
    choices: tuple[str, ...] = ()


_FLAG = ('', 'true', 'false')
_CHECKPOINT = Argument(
    f'A folder or Hub id of a checkpoint; {" or ".join(SHIPPED)}: trained, ship with the package, '
    'the first is the default; random: small, untrained weights. What ships has seen nothing but '
    'LIBERO in simulation: before a real camera it moves the robot without any use, so name a '
    'checkpoint that was trained for your robot')
_DEVICE = Argument('Torch device of the worker: cpu, cuda, ...')
_WORLD_MODEL = Argument('Load the world model, too, for the service ~/imagine', '', _FLAG)

POLICY_ARGUMENTS = {
    'checkpoint': _CHECKPOINT,
    'subfolder': Argument('Folder inside the checkpoint'),
    'settings': Argument('policy.json in place of the checkpoint\'s; for released checkpoints one '
                         f'of {", ".join(RELEASED)}'),
    'device': _DEVICE,
    'dtype': Argument('Number format of the weights', '',
                      ('', 'auto', 'float32', 'bfloat16', 'float16')),
    'weights': Argument('fp8 for speed on a GPU that has it', '', ('', 'dense', 'fp8')),
    'world_model': _WORLD_MODEL,
    'image': Argument('Topic of the third-person camera', 'image'),
    'wrist_image': Argument('Topic of the wrist camera, for checkpoints that read it',
                            'wrist_image'),
    'ee_pose': Argument('Topic of the end effector\'s pose in the frame of the base', 'ee_pose'),
    'joint_states': Argument('Topic of the joints, among them the gripper\'s', 'joint_states'),
    'mode': Argument('realtime for robots, lockstep for a simulator that waits', '',
                     ('', 'realtime', 'lockstep')),
    'use_sim_time': Argument('Take the time from /clock', '', _FLAG),
    'namespace': Argument('Namespace of the node and its topics, such as left, for two arms'),
    'params_file': Argument('YAML file of parameters, as config/policy.yaml; arguments go first'),
}
"""Arguments of policy.launch.py."""

SIM_ARGUMENTS = {
    'mode': Argument('lockstep waits for commands, realtime does not', '',
                     ('', 'lockstep', 'realtime')),
    'assets': Argument('Meshes and textures', '', ('', 'auto', 'builtin', 'official')),
    'image_size': Argument('Side of the camera images [px]'),
    'wrist': Argument('Publish the wrist camera, too', '', _FLAG),
    'params_file': Argument('YAML file of parameters, as config/bridge.yaml; arguments go first'),
}
"""Arguments of sim.launch.py."""

DEMO_ARGUMENTS = {
    'checkpoint': _CHECKPOINT,
    'device': _DEVICE,
    'world_model': _WORLD_MODEL,
    'mode': Argument('lockstep: each waits for the other; realtime: 20 Hz', 'lockstep',
                     ('lockstep', 'realtime')),
    'assets': Argument('Meshes and textures', 'builtin', ('auto', 'builtin', 'official')),
    'image_size': Argument('Side of the camera images [px]; default: what the checkpoint was '
                           'trained on, where it is a folder or ships with the package'),
    'wrist': Argument('Publish the wrist camera, too; default: if such a checkpoint reads it', '',
                      _FLAG),
}
"""Arguments of demo.launch.py: the policy and the simulator, wired to each other."""


@dataclass(frozen=True)
class NodeSpec:
    """One node of the graph."""

    executable: str
    name: str
    parameters: dict[str, Any] = field(default_factory=dict)
    parameter_files: tuple[str, ...] = ()  # read first: `parameters` override them
    remappings: dict[str, str] = field(default_factory=dict)
    namespace: str = ''

    def ros_arguments(self) -> list[str]:
        """Return the command line arguments that a ROS node understands."""
        arguments = ['--ros-args', '-r', f'__node:={self.name}']
        if self.namespace:
            arguments += ['-r', f'__ns:=/{self.namespace.lstrip("/")}']
        for source, target in self.remappings.items():
            arguments += ['-r', f'{source}:={target}']
        for path in self.parameter_files:
            arguments += ['--params-file', path]
        for name, value in self.parameters.items():
            arguments += ['-p', f'{name}:={_yaml(value)}']
        return arguments


def policy_graph(given: Mapping[str, str]) -> list[NodeSpec]:
    """Return the policy node for some or all of POLICY_ARGUMENTS."""
    arguments = {**defaults(POLICY_ARGUMENTS), **given}
    parameters = _given(arguments, {
        **{name: (name, str) for name in (
            'checkpoint', 'subfolder', 'settings', 'device', 'dtype', 'weights')},
        'mode': ('control.mode', str), 'use_sim_time': ('use_sim_time', _flag),
        'world_model': ('world_model', _flag)})
    return [NodeSpec(
        POLICY_NODE, POLICY_NODE, parameters=parameters,
        parameter_files=_files(arguments), namespace=arguments['namespace'],
        remappings={topic: arguments[topic] for topic in (
            'image', 'wrist_image', 'ee_pose', 'joint_states')})]


def sim_graph(given: Mapping[str, str]) -> list[NodeSpec]:
    """Return the bridge for some or all of SIM_ARGUMENTS."""
    arguments = {**defaults(SIM_ARGUMENTS), **given}
    return [NodeSpec(
        BRIDGE_NODE, BRIDGE_NODE,
        parameters=_given(arguments, {'mode': ('mode', str), 'assets': ('assets', str),
                                      'image_size': ('image_size', int),
                                      'wrist': ('wrist', _flag)}),
        parameter_files=_files(arguments),
        remappings={'action': f'{POLICY_NODE}/action'})]


def demo_graph(given: Mapping[str, str]) -> list[NodeSpec]:
    """Return policy and bridge, wired, for some or all of DEMO_ARGUMENTS."""
    arguments = {**defaults(DEMO_ARGUMENTS), **given}
    policy, = policy_graph({**_only(arguments, 'checkpoint', 'device', 'mode', 'world_model'),
                            'use_sim_time': 'true', 'image': 'camera/agentview/image_raw',
                            'wrist_image': 'camera/wrist/image_raw'})
    seen = _settings_of(arguments['checkpoint'])
    if seen is not None:
        arguments['image_size'] = arguments['image_size'] or str(seen.image_size)
        arguments['wrist'] = arguments['wrist'] or str(seen.reads_wrist).lower()
    return [policy, *sim_graph(_only(arguments, 'mode', 'assets', 'image_size', 'wrist'))]


def _settings_of(checkpoint: str) -> PolicySettings | None:
    """Return what a checkpoint says of itself; None where no file here tells."""
    checkpoint = checkpoint or SHIPPED[0]
    if checkpoint == RANDOM:  # made by the node, on first use
        return None
    settings = Path(locate_checkpoint(checkpoint), POLICY_FILE)
    return PolicySettings.load(settings) if settings.is_file() else None


def defaults(arguments: Mapping[str, Argument]) -> dict[str, str]:
    """Return the default of each argument."""
    return {name: argument.default for name, argument in arguments.items()}


def _only(arguments: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: arguments[name] for name in names}


def _given(arguments: Mapping[str, str],
           parameters: Mapping[str, tuple[str, Callable[[str], Any]]]) -> dict[str, Any]:
    """Return {parameter: value} for the arguments that are not left empty."""
    values = {}
    for argument, (parameter, convert) in parameters.items():
        if text := arguments[argument]:
            try:
                values[parameter] = convert(text)
            except ValueError:
                raise ConfigError(f'{argument} must be a number, got {text!r}') from None
    return values


def _files(arguments: Mapping[str, str]) -> tuple[str, ...]:
    """Return the parameter file; ROS launch would pass over a missing one and its limits."""
    path = arguments['params_file']
    if path and not Path(path).is_file():
        raise ConfigError(f'params_file: there is no file {path!r}; give the path of a YAML file '
                          f'of parameters, or leave it out')
    return (path,) if path else ()


def _flag(text: str) -> bool:
    return text == 'true'


def _yaml(value: Any) -> str:
    """Write a value so that the ROS command line reads the same value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value)

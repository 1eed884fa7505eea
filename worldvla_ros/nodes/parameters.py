# SPDX-License-Identifier: Apache-2.0
"""Parameters of the policy node: declared, checked and read once into a frozen dataclass."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
import math
from pathlib import Path
import re
from types import MappingProxyType
from typing import Any, TypeVar

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
import yaml

from worldvla_ros.config import FieldInfo, bounded, describe, nearest, unflatten
from worldvla_ros.control.settings import ControllerSettings
from worldvla_ros.errors import ConfigError
from worldvla_ros.inference.backend import BACKENDS
from worldvla_ros.policy.named_checkpoints import SHIPPED
from worldvla_ros.policy.settings import RELEASED

T = TypeVar('T')
_MISSPELT = 0.9  # likeness from which a name is one of ours; `robot_base_frame` is others'


@dataclass(frozen=True)
class WorkerParameters:
    """The process that runs the model."""

    python: str = bounded(
        '', read_only=True,
        doc='Python that has torch, such as /path/to/venv/bin/python; empty: the one of the node')
    threads: int = bounded(
        0, minimum=0, maximum=1024, read_only=True,
        doc='Torch threads of the worker; 0: all cores but one, which is left for the node')
    load_timeout: float = bounded(
        55.0, unit='s', minimum=1.0, maximum=600.0, read_only=True,
        doc='Longest load, and longest step of the warm-up; configure waits no longer for both, '
            'below 60 s so that it answers in time')
    answer_timeout: float = bounded(
        5.0, unit='s', minimum=0.05, maximum=600.0, read_only=True,
        doc='Longest wait for one chunk; after it the worker counts as hung')
    imagine_timeout: float = bounded(
        60.0, unit='s', minimum=0.05, maximum=600.0, read_only=True,
        doc='The same for one imagined frame, which takes as long as many chunks')
    heartbeat_timeout: float = bounded(
        3.0, unit='s', minimum=0.2, maximum=60.0, read_only=True,
        doc='Longest silence of an idle worker')
    max_restarts: int = bounded(
        3, minimum=0, maximum=1000, read_only=True, doc='Restarts within restart_window')
    restart_window: float = bounded(
        300.0, unit='s', minimum=1.0, maximum=86400.0, read_only=True, doc='See max_restarts')
    frame_memory_mb: int = bounded(
        32, unit='MB', minimum=1, maximum=1024, read_only=True,
        doc='Shared memory for the frames of one request')


@dataclass(frozen=True)
class CameraParameters:
    """How images become frames."""

    transport: str = bounded(
        'raw', choices=('raw', 'compressed'), read_only=True,
        doc='Of both cameras. raw: topics image and wrist_image; compressed: image/compressed and '
            'wrist_image/compressed')
    crop: str = bounded(
        'center', choices=('center', 'none'), read_only=True,
        doc='center: cut the largest centred square, because training saw squares; '
            'none: refuse an image that is not square')


@dataclass(frozen=True)
class ServoParameters:
    """
    The same motion for MoveIt Servo.

    A command is a goal offset for an operational-space controller, which gets a part of the way in
    one step, before the next goal comes. The default gains are those of LIBERO's OSC_POSE, motion
    / goal offset per step and axis after at least 0.4 s in one direction, median (10th to 90th
    percentile) in demonstrations of libero_object, libero_spatial and libero_goal: translation
    0.26 (0.22 to 0.29; 41,431 steps), rotation 0.22 (0.20 to 0.23; 12,122 steps).
    """

    enabled: bool = bounded(False, read_only=True, doc='Publish ~/delta_twist_cmds')
    command_type: str = bounded(
        'speed_units', choices=('speed_units', 'unitless'), read_only=True,
        doc='As MoveIt Servo\'s command_in_type: m/s and rad/s, or controller input in [-1, 1]')
    translation_gain: float = bounded(
        0.26, minimum=0.0, maximum=1.0, read_only=True,
        doc='Share of a translation that the arm of the demonstrations covers within its control '
            'step, for speed_units and for the walls of limits.workspace_*; default: measured on '
            'LIBERO; 1 for an arm that gets all the way within the step')
    rotation_gain: float = bounded(
        0.22, minimum=0.0, maximum=1.0, read_only=True, doc='The same for a rotation')


@dataclass(frozen=True)
class PolicyParameters(ControllerSettings):
    """All parameters of the policy node."""

    checkpoint: str = bounded(
        SHIPPED[0], read_only=True,
        doc=f'Folder or Hub id of a checkpoint; {", ".join(SHIPPED)}: the trained ones of this '
            'package; random: small, seeded, untrained weights')
    subfolder: str = bounded('', read_only=True, doc='Folder inside the checkpoint')
    settings: str = bounded(
        '', read_only=True,
        doc='policy.json in place of the checkpoint\'s: a file, or for released checkpoints, which'
            f' have none, one of {", ".join(RELEASED)}')
    device: str = bounded('cpu', read_only=True, doc='Torch device: cpu, cuda, cuda:0, ...')
    dtype: str = bounded(
        'auto', choices=('auto', 'float32', 'bfloat16', 'float16'), read_only=True,
        doc='Number format of the weights; auto: bfloat16 where the device is fast at it')
    weights: str = bounded(
        'dense', choices=('dense', 'fp8'), read_only=True,
        doc='dense: as dtype says; fp8: multiply the layers in 8 bits, for speed and not exactly; '
            'needs a GPU of compute capability 8.9 or later, bfloat16 and a checkpoint that was '
            'trained with the action-chunk mask')
    drafts: bool = bounded(
        False, read_only=True,
        doc='On a GPU, guess each chunk from the last one and correct it: the same actions, in '
            'fewer passes where consecutive chunks resemble each other')
    world_model: bool = bounded(
        False, read_only=True,
        doc='Load the world model, too, for ~/imagine: on the weights of the policy, with a cache '
            'of its own')
    num_actions: int = bounded(
        0, minimum=0, maximum=1000, read_only=True,
        doc='Actions per chunk; 0: as the checkpoint says')
    backend: str = bounded(
        'worker', choices=BACKENDS, read_only=True,
        doc='worker: a process of its own; inproc: a thread of the node, for debugging; replay: '
            'recorded chunks; mock: a small circle, the gripper open')
    replay_path: str = bounded('', read_only=True, doc='File of recorded chunks for replay')
    script_latency: float = bounded(
        0.0, unit='s', minimum=0.0, maximum=60.0, read_only=True,
        doc='Time that the backends replay and mock take for a chunk')
    base_frame: str = bounded(
        'panda_link0', read_only=True,
        doc='frame_id of the commands, and of ee_pose: base link of the robot')
    gripper_joints: tuple[str, ...] = bounded(
        ('panda_finger_joint1', 'panda_finger_joint2'), read_only=True,
        doc='Joints of the gripper in joint_states; for checkpoints that read the state of the '
            'arm')
    autostart: bool = bounded(
        True, read_only=True, doc='Configure and activate at start, without a lifecycle manager')
    status_rate: float = bounded(
        2.0, unit='Hz', minimum=0.1, maximum=50.0, read_only=True, doc='Rate of ~/status')
    clock_timeout: float = bounded(
        5.0, unit='s', minimum=0.1, maximum=60.0, read_only=True,
        doc='Longest wait for /clock in activate, with use_sim_time')
    worker: WorkerParameters = field(default_factory=WorkerParameters)
    camera: CameraParameters = field(default_factory=CameraParameters)
    servo: ServoParameters = field(default_factory=ServoParameters)

    def __post_init__(self) -> None:
        """Refuse a gripper without joints and a world model without a model, too."""
        super().__post_init__()
        if not self.gripper_joints:
            raise ConfigError('gripper_joints must name at least one joint of joint_states')
        if self.world_model and self.backend not in ('worker', 'inproc'):
            raise ConfigError(f'world_model is true, and the backend {self.backend} has no model; '
                              'take the backend worker, or inproc')


AT_START = ('autostart', 'control.heartbeat_estop')
"""What the policy node reads when it is made; the rest of what is read-only by `configure`."""


def declare(node: Node, cls: type, read_only: Container[str] | None = None) -> None:
    """
    Declare every value of a configuration dataclass with type, range, unit and meaning.

    Raises ConfigError for a parameter from outside that is nearly one of the node's: ROS would
    pass over it, and a misspelt limit would limit nothing. Others are logged, since a `/**`
    section of a parameter file may name what other nodes have, `update_rate` or `frame_id`.

    :param read_only: of the values that are so marked, those that may never change; None: all.
        Of the others the node itself says when.
    """
    infos = {info.name: info for info in describe(cls)}
    for info in infos.values():
        fixed = info.read_only and (read_only is None or info.name in read_only)
        node.declare_parameter(info.name, _to_parameter(info.default), _descriptor(info, fixed))
    for name in node._parameter_overrides:  # rclpy has no other way to ask
        if node.has_parameter(name):
            continue
        unknown = f'{_where(node)}: unknown parameter {name!r}'
        ends = [full for full in infos if full.endswith(f'.{name}')]  # its group is missing
        if meant := next(iter(ends), None) or nearest(name, [*infos, 'use_sim_time'], _MISSPELT):
            raise ConfigError(f'{unknown}; did you mean {meant!r}?')
        node.get_logger().warning(f'{unknown}; it changes nothing')


def check_files(node: Node, arguments: Sequence[str]) -> None:
    """
    Raise ConfigError if no parameter file on the command line has a section for the node.

    ROS would pass over them, and the limits in them would limit nothing. Beside one that has,
    others are logged: a launch file gives those of `SetParametersFromFile` to each of its nodes.

    :param arguments: of the program; files are given as `--params-file PATH`
    """
    name = node.get_fully_qualified_name()
    paths = [path for option, path in pairwise(arguments) if option == '--params-file']
    without = {}
    for path in paths:
        sections = list(_sections(yaml.safe_load(Path(path).read_text(encoding='utf-8'))))
        if not any(_matches(section, name) for section in sections):
            without[path] = (f'{path} has no section for {name}, so nothing in it counts; its '
                             f'sections: {", ".join(sections) or "none"}')
    if without and len(without) == len(set(paths)):
        raise ConfigError(f'{"; ".join(without.values())}. Name the section '
                          f'/**{name[name.rindex("/"):]}')
    for complaint in without.values():
        node.get_logger().warning(complaint)


def _sections(content: Any, name: str = '') -> Iterator[str]:
    """Yield the names of the nodes that a parameter file is for, from its root."""
    for key, value in content.items() if isinstance(content, dict) else ():
        if key == 'ros__parameters':
            yield name
        else:
            yield from _sections(value, f'{name}/{str(key).strip("/")}')


def _matches(section: str, name: str) -> bool:
    """Return whether a section is for a node, as rcl has it: * is one name, ** any number."""
    patterns = {'*': '/[^/]+', '**': '(?:/[^/]+)*'}
    tokens = section.strip('/').split('/')
    return re.fullmatch(
        ''.join(patterns.get(token, '/' + re.escape(token)) for token in tokens), name) is not None


def read(node: Node, cls: type[T], changes: Mapping[str, Any] = MappingProxyType({})) -> T:
    """
    Read the declared parameters. Raises ConfigError that names the parameter.

    :param changes: values that count in place of the node's own, to look at before they are set
    """
    values = {}
    for info in describe(cls):
        value = changes.get(info.name, node.get_parameter(info.name).value)
        values[info.name] = _from_parameter(value)
    return unflatten(cls, values, where=_where(node))


def read_one(node: Node, cls: type, name: str) -> Any:
    """Read one declared parameter, whatever the others are. Raises ConfigError that names it."""
    info = next(info for info in describe(cls) if info.name == name)
    return info.convert(_from_parameter(node.get_parameter(name).value), _where(node))


def _where(node: Node) -> str:
    return f'parameters of {node.get_fully_qualified_name()}'


def _descriptor(info: FieldInfo, fixed: bool) -> ParameterDescriptor:
    # Dynamic typing, because `rate:=20` is an integer to ROS; `read` converts and checks.
    descriptor = ParameterDescriptor(
        name=info.name, description=f'{info.doc} ({info.allowed()})', read_only=fixed,
        dynamic_typing=True)
    low, high = info.minimum, info.maximum
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return descriptor
    if info.type is float:
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(low), to_value=float(high))]
    elif info.type is int:
        descriptor.integer_range = [
            IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return descriptor


def _to_parameter(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _from_parameter(value: Any) -> Any:
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    return tuple(value) if is_list else value  # of a wrong type: `convert` says so

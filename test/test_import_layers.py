# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and where torch and ROS may be loaded."""

import ast
from dataclasses import dataclass
import importlib.util
import os
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).parents[1]

# Prefix of the importer -> prefixes it may import, beside itself and the errors. The longest
# prefix that fits an importer counts.
LAYERS = {
    'worldvla_ros.errors': (),
    'worldvla_ros.datatypes': (),
    'worldvla_ros.arm_state': (),
    'worldvla_ros.config': (),
    'worldvla_ros.whole_files': (),
    'worldvla_ros.file_lock': (),
    'worldvla_ros.held_signals': (),
    'worldvla_ros.arguments': (),
    'worldvla_ros.graph': ('worldvla_ros.policy.named_checkpoints',
                           'worldvla_ros.policy.settings'),
    'worldvla_ros.tokens': ('worldvla_ros.datatypes',),
    # token ids have one home, so the networks take the id ranges from there and nothing else
    'worldvla_ros.model': ('worldvla_ros.tokens.vocab',),
    'worldvla_ros.model.checkpoint': (
        'worldvla_ros.model', 'worldvla_ros.tokens.vocab', 'worldvla_ros.whole_files'),
    'worldvla_ros.safety': ('worldvla_ros.datatypes', 'worldvla_ros.config'),
    'worldvla_ros.policy': (
        'worldvla_ros.tokens', 'worldvla_ros.model', 'worldvla_ros.datatypes'),
    'worldvla_ros.policy.random_checkpoint': (
        'worldvla_ros.policy', 'worldvla_ros.tokens', 'worldvla_ros.model',
        'worldvla_ros.whole_files'),
    'worldvla_ros.policy.settings': (
        'worldvla_ros.tokens', 'worldvla_ros.config', 'worldvla_ros.datatypes'),
    'worldvla_ros.policy.frame_history': ('worldvla_ros.datatypes',),
    'worldvla_ros.policy.chunk_schedule': ('worldvla_ros.datatypes',),
    'worldvla_ros.policy.state_history': ('worldvla_ros.arm_state',),
    'worldvla_ros.recording': ('worldvla_ros.datatypes', 'worldvla_ros.whole_files'),
    'worldvla_ros.training': (
        'worldvla_ros.recording', 'worldvla_ros.policy', 'worldvla_ros.tokens',
        'worldvla_ros.model', 'worldvla_ros.config', 'worldvla_ros.datatypes',
        'worldvla_ros.arm_state', 'worldvla_ros.whole_files', 'worldvla_ros.file_lock',
        'worldvla_ros.arguments'),
    'worldvla_ros.inference': (
        'worldvla_ros.policy', 'worldvla_ros.tokens', 'worldvla_ros.datatypes',
        'worldvla_ros.config', 'worldvla_ros.safety'),
    'worldvla_ros.control': (
        'worldvla_ros.policy.frame_history', 'worldvla_ros.policy.chunk_schedule',
        'worldvla_ros.policy.state_history',
        'worldvla_ros.safety', 'worldvla_ros.inference.backend', 'worldvla_ros.config',
        'worldvla_ros.datatypes'),
    'worldvla_ros.nodes': (
        'worldvla_ros.policy.named_checkpoints', 'worldvla_ros.policy.settings',
        'worldvla_ros.control', 'worldvla_ros.inference', 'worldvla_ros.graph',
        'worldvla_ros.recording', 'worldvla_ros.model.image_preprocessing',
        'worldvla_ros.policy.frame_history', 'worldvla_ros.policy.chunk_schedule',
        'worldvla_ros.safety', 'worldvla_ros.config', 'worldvla_ros.datatypes',
        'worldvla_ros.arguments', 'worldvla_ros.held_signals'),
    'worldvla_sim': (
        'worldvla_ros.recording', 'worldvla_ros.policy', 'worldvla_ros.safety',
        'worldvla_ros.config', 'worldvla_ros.datatypes', 'worldvla_ros.arm_state',
        'worldvla_ros.whole_files', 'worldvla_ros.file_lock', 'worldvla_ros.held_signals',
        'worldvla_ros.arguments'),
    # read demonstrations as training does
    'worldvla_sim.recorded_simulation': ('worldvla_sim', 'worldvla_ros.recording',
                                         'worldvla_ros.training'),
    'worldvla_sim.replay': ('worldvla_sim', 'worldvla_ros.recording', 'worldvla_ros.training',
                            'worldvla_ros.arguments'),
    'worldvla_sim.rerender': ('worldvla_sim', 'worldvla_ros.recording', 'worldvla_ros.training',
                              'worldvla_ros.arguments'),
    'worldvla_sim.view_demos': ('worldvla_sim', 'worldvla_ros.training', 'worldvla_ros.datatypes',
                                'worldvla_ros.whole_files'),
    # trains and evaluates, each in processes of their own, so it reads the files of both
    'worldvla_sim.ablation': ('worldvla_sim', 'worldvla_ros.training', 'worldvla_ros.config',
                              'worldvla_ros.datatypes', 'worldvla_ros.whole_files'),
}
# What the ROS programs of the simulator may import on top: parts of nodes, but no node.
SIM_ROS_EXTRA = ('worldvla_ros.nodes.conversions', 'worldvla_ros.nodes.parameters',
                 'worldvla_ros.nodes.runtime', 'worldvla_ros.nodes.process_group',
                 'worldvla_ros.graph')
MESSAGES = ('worldvla_ros.msg', 'worldvla_ros.srv', 'worldvla_ros.action')

TORCH = {'torch', 'torchvision', 'transformers'}
# What no package of the system brings: ros2 launch and the nodes may run on its own Python.
WHEELS = TORCH | {'tokenizers', 'safetensors', 'huggingface_hub', 'imageio_ffmpeg', 'mujoco'}
ON_SYSTEM_PYTHON = ('worldvla_ros.graph', 'worldvla_ros.nodes', 'worldvla_ros.control',
                    'worldvla_ros.inference', 'worldvla_ros.recording')
MAY_LOAD_TORCH = (
    'worldvla_ros.model', 'worldvla_ros.training', 'worldvla_ros.policy.policy',
    'worldvla_ros.policy.world_model', 'worldvla_ros.policy.random_checkpoint')
MAY_LOAD_TORCH_LAZILY = ('worldvla_ros.inference.worker', 'worldvla_sim.evaluate',
                         'worldvla_sim.policies')

ROS = {'rclpy', 'launch', 'launch_ros', 'ament_index_python', 'cv_bridge', 'tf2_ros',
       'builtin_interfaces', 'std_srvs', 'rosgraph_msgs', 'action_msgs', 'rosidl_runtime_py'}
MAY_LOAD_ROS = ('worldvla_ros.nodes', 'worldvla_sim.ros')

TORCH_FREE = ('worldvla_ros.arm_state', 'worldvla_ros.recording',
              'worldvla_ros.model.image_preprocessing', 'worldvla_ros.policy.frame_history',
              'worldvla_ros.policy.chunk_schedule', 'worldvla_ros.policy.state_history',
              'worldvla_ros.safety', 'worldvla_ros.config', 'worldvla_ros.datatypes',
              'worldvla_ros.tokens', 'worldvla_ros.control', 'worldvla_ros.inference',
              'worldvla_ros.graph', 'worldvla_ros.nodes', *MAY_LOAD_ROS)


@dataclass(frozen=True)
class Import:
    name: str  # 'package.module' or 'package.module.attribute'
    line: int
    lazy: bool  # runs only when a function is called, or for the type checker only
    relative: bool


def within(name, prefixes):
    return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def imports(source):
    """List the imports of a module with their place."""
    def visit(node, lazy):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy, relative=False)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(f'{node.module}.{alias.name}', node.lineno, lazy, node.level > 0)
        lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING')
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy)

    return list(visit(ast.parse(source), lazy=False))


def is_ros_module(module):
    return within(module, MAY_LOAD_ROS)


def violations(module, source):
    """List the imports of a module that break a rule, as 'module:line imports what: why'."""
    found = []
    layer = max((prefix for prefix in LAYERS if within(module, [prefix])), key=len, default=None)
    allowed = (*LAYERS.get(layer, ()), 'worldvla_ros.errors', layer or module)
    if module.startswith('worldvla_sim.') and is_ros_module(module):
        allowed += SIM_ROS_EXTRA
    for one in imports(source):
        package = one.name.partition('.')[0]
        why = None
        if one.relative:
            why = 'imports are absolute'
        elif within(one.name, MESSAGES) or package in ROS or package.endswith('_msgs'):
            why = None if is_ros_module(module) else 'only nodes and ROS programs load ROS'
        elif package in TORCH and not within(module, MAY_LOAD_TORCH):
            if not (one.lazy and within(module, MAY_LOAD_TORCH_LAZILY)):
                why = 'torch stays with the model and its worker'
        elif package in ('worldvla_ros', 'worldvla_sim') and not within(one.name, allowed):
            why = f'{layer} may import {", ".join(allowed)}'
        if why:
            found.append(f'{module}:{one.line} imports {one.name}: {why}')
    return found


def modules():
    """Map the dotted name of every module of the project to its source."""
    found = {}
    for base, package in ((ROOT, 'worldvla_ros'), (ROOT / 'sim', 'worldvla_sim')):
        for path in sorted((base / package).rglob('*.py')):
            name = '.'.join(path.relative_to(base).with_suffix('').parts)
            found[name.removesuffix('.__init__')] = path.read_text(encoding='utf-8')
    return found


def test_every_import_keeps_to_its_layer():
    assert [line for name, source in modules().items() for line in violations(name, source)] == []


def test_every_rule_is_about_a_module_that_exists():
    names = [*LAYERS, *SIM_ROS_EXTRA, *MAY_LOAD_TORCH, *MAY_LOAD_TORCH_LAZILY, *TORCH_FREE]
    assert [name for name in names if name not in modules()] == []


def test_every_module_belongs_to_a_layer():
    assert [name for name in modules()
            if name != 'worldvla_ros' and not within(name, LAYERS)] == []


def test_no_eager_import_path_leads_from_the_robot_side_to_torch_or_wheels():
    sources = modules()
    eager = {
        name: {one.name for one in imports(source) if not one.lazy}
        for name, source in sources.items()}
    for start in (name for name in sources if within(name, TORCH_FREE) or is_ros_module(name)):
        path = path_to(TORCH, start, eager)
        assert path is None, ' -> '.join(path)
    for start in (name for name in sources if within(name, ON_SYSTEM_PYTHON)):
        path = path_to(WHEELS, start, eager)
        assert path is None, ' -> '.join(path)


def path_to(packages, start, eager):
    """Find the shortest chain of eager imports from a module to packages; None without one."""
    paths, seen = [(start,)], {start}
    while paths:
        path = paths.pop(0)
        for name in sorted(eager[path[-1]]):
            if name.partition('.')[0] in packages:
                return (*path, name)
            loaded = {candidate for candidate in eager if within(name, [candidate])} - seen
            seen |= loaded
            paths += [(*path, candidate) for candidate in sorted(loaded)]
    return None


def test_the_search_for_torch_follows_packages_and_attributes():
    eager = {'a': {'b.c.Name'}, 'b': set(), 'b.c': {'d'}, 'd': {'torch.nn'}, 'e': {'b.x'}}
    assert path_to(TORCH, 'a', eager) == ('a', 'b.c', 'd', 'torch.nn')
    assert path_to(TORCH, 'e', eager) is None


@pytest.mark.parametrize('module, source', [
    ('worldvla_ros.tokens.vocab', 'import torch'),
    ('worldvla_ros.tokens.vocab', 'from worldvla_ros.model.transformer import Transformer'),
    ('worldvla_ros.model.transformer', 'from worldvla_ros.tokens import sequence'),
    ('worldvla_ros.model.transformer', 'import worldvla_ros.policy.policy'),
    ('worldvla_ros.safety.limits', 'def f():\n    import torch'),
    ('worldvla_ros.safety.limits', 'from worldvla_ros.nodes.conversions import to_frame'),
    ('worldvla_ros.safety.limits', 'from worldvla_ros.msg import DeltaAction'),
    ('worldvla_ros.policy.policy', 'import rclpy'),
    ('worldvla_ros.policy.policy', 'from . import settings'),
    ('worldvla_ros.policy.frame_history', 'from worldvla_ros.model.transformer import x'),
    ('worldvla_ros.inference.worker', 'import torch'),
    ('worldvla_ros.inference.worker', 'from worldvla_ros.nodes import parameters'),
    ('worldvla_ros.inference.worker', 'from sensor_msgs.msg import Image'),
    ('worldvla_ros.inference.worker_backend', 'def f():\n    import torch'),
    ('worldvla_ros.inference.backend', 'from worldvla_ros.control.controller import Outgoing'),
    ('worldvla_ros.control.controller', 'def f():\n    import torch'),
    ('worldvla_ros.control.controller', 'import rclpy'),
    ('worldvla_ros.control.controller', 'from worldvla_ros.policy.policy import WorldVLAPolicy'),
    ('worldvla_ros.control.controller',
     'from worldvla_ros.inference.worker_backend import WorkerBackend'),
    ('worldvla_ros.control.controller', 'from worldvla_ros.nodes import conversions'),
    ('worldvla_ros.nodes.policy_node', 'from worldvla_ros.policy.policy import WorldVLAPolicy'),
    ('worldvla_ros.nodes.policy_node', 'def f():\n    import torch'),
    ('worldvla_ros.config', 'from worldvla_ros.datatypes import Frame'),
    ('worldvla_sim.libero_env', 'import rclpy'),
    ('worldvla_sim.libero_env', 'from worldvla_ros.nodes.conversions import to_frame'),
    ('worldvla_sim.ros.libero_bridge',
     'from worldvla_ros.nodes.policy_node import PolicyNode'),
    ('worldvla_sim.evaluate', 'import torch'),
])
def test_a_forbidden_import_is_found(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize('module, source', [
    ('worldvla_ros.policy.policy', 'import torch\nfrom worldvla_ros.model import generate'),
    ('worldvla_ros.inference.worker', 'def f():\n    import torch'),
    ('worldvla_ros.inference.worker', 'if TYPE_CHECKING:\n    import torch'),
    ('worldvla_ros.control.controller', 'from worldvla_ros.inference.backend import Backend'),
    ('worldvla_ros.nodes.policy_node', 'import rclpy\nfrom worldvla_ros.msg import DeltaAction\n'
     'from worldvla_ros.policy.chunk_schedule import ChunkSchedule'),
    ('worldvla_sim.ros.libero_bridge',
     'import rclpy\nfrom worldvla_ros.nodes.conversions import x'),
    ('worldvla_sim.ros.teleop', 'from std_msgs.msg import String'),
])
def test_an_allowed_import_is_not_reported(module, source):
    assert violations(module, source) == []


def loaded_by(module):
    """Import a module in a fresh interpreter; return the heavy packages it loaded."""
    search = os.pathsep.join([str(ROOT), str(ROOT / 'sim'), os.environ.get('PYTHONPATH', '')])
    program = (f'import sys, {module}\n'
               f'print(*sorted({TORCH | {"rclpy", "mujoco"}!r} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True,
                          check=False, timeout=120, env={**os.environ, 'PYTHONPATH': search})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_core_loads_neither_torch_nor_ros():
    names = [name for name in modules() if within(name, (
        'worldvla_ros.policy.frame_history', 'worldvla_ros.policy.chunk_schedule',
        'worldvla_ros.safety', 'worldvla_ros.config', 'worldvla_ros.control',
        'worldvla_ros.inference'))]
    assert len(names) >= 7
    assert loaded_by(', '.join(names)) == []


def test_the_policy_node_does_not_load_torch():
    if importlib.util.find_spec('rclpy') is None or importlib.util.find_spec(
            'worldvla_ros.msg') is None:
        pytest.skip('needs rclpy and the built messages: source the workspace, or `make test`')
    assert not TORCH & set(loaded_by('worldvla_ros.nodes.policy_node'))

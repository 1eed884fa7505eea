# SPDX-License-Identifier: Apache-2.0
"""Compare assets with what LIBERO's tasks expect of the state layout and of resting poses.

Each function returns what does not fit; an empty list means that all fits.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any, NamedTuple

import mujoco
import numpy as np

from worldvla_ros.errors import AssetError
from worldvla_sim.libero_env import NO_OP, LiberoEnv
from worldvla_sim.tasks import initial_states

Pose = tuple[np.ndarray, np.ndarray]  # (3,) [m], (4,) wxyz
EXPECTED_FILE = Path(__file__).parents[3] / 'test' / 'sim' / 'expected_state_layout.json'
SETTLE_STEPS = 20  # no-op control steps, one second
HEIGHT_TOLERANCE = 0.001  # [m]
_DRIFT_TOLERANCE = 0.001  # [m] sideways between the stored and the settled pose
_TILT_TOLERANCE_DEG = 2.0
_LOWERING = 0.002  # [m] between two looks at what is in an object's way
_ROBOT_JOINTS = 9  # seven of the arm, two of the gripper
_WORKSPACES = {  # height of what objects stand on [m]
    'floor': 0.0, 'main_table': 0.9, 'kitchen_table': 0.9, 'living_room_table': 0.4368,
    'study_table': 0.885,
}
# Surfaces of fixtures above the fixture's origin, of objects above what they stand on [m]; from
# the boxes around LIBERO's collision geometry, because poses on them were not measured.  LIBERO's
# own ramekin is hollow: a bowl that falls on it ends up to 37 mm aside, on ours in the middle.
_SURFACES = {
    'wooden_cabinet_1_top_side': 0.223, 'wooden_cabinet_1_top_region': 0.159,
    'flat_stove_1_cook_region': 0.025, 'cookies_1': 0.019,
    'glazed_rim_porcelain_ramekin_1': 0.0400,
}


def load_expectations(path: Path = EXPECTED_FILE) -> dict[str, Any]:
    """
    Return what was measured with LIBERO's own assets.

    :raises AssetError: the file is not there: it belongs to a checkout, not to an installation.
    """
    try:
        expected: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise AssetError(
            f'cannot read the expectations {path}: {error.strerror}; run this from a checkout of '
            'the repository or name the file with --expected') from error
    return expected


def layout_misfits(env: LiberoEnv, expected: Mapping[str, Any]) -> list[str]:
    """Compare joint names, order, addresses and state width with the official layout."""
    task = next(entry for entry in expected['tasks']
                if (entry['suite'], entry['task']) == (env.suite, env.task))
    model = env.model
    names = [model.joint(k).name for k in range(_ROBOT_JOINTS, model.njnt)]
    addresses = [int(model.jnt_qposadr[k]) for k in range(_ROBOT_JOINTS, model.njnt)]
    compared = {
        'nq': (model.nq, task['nq']), 'nv': (model.nv, task['nv']),
        'state width': (1 + model.nq + model.nv, initial_states(env.task_info).shape[1]),
        'joints': (names, task['joints']), 'addresses': (addresses, task['qpos_addresses']),
    }
    return [f'{key} {got}, expected {want}' for key, (got, want) in compared.items()
            if got != want]


class Finding(NamedTuple):
    """Something that does not stay where LIBERO's initial state puts it."""

    text: str
    explanation: str | None  # None: a misfit


def settle_findings(
    env: LiberoEnv, init_state: int, expected: Mapping[str, Any],
) -> list[Finding]:
    """
    Let an official initial state settle and compare heights, places and attitudes.

    Heights are compared with those measured with LIBERO's own assets.  Sideways and in attitude an
    object must stay where the initial state puts it, because official states are stored a few
    centimetres above the resting pose.  Some of them let an object fall onto the edge of its
    neighbour; where it ends then depends on the shape of both, so that is explained, no misfit.
    """
    env.reset(init_state, settle_steps=0)
    before = env.privileged().bodies
    places = _places(env)
    for _ in range(SETTLE_STEPS):
        env.step(NO_OP)
    findings = [Finding('successful before anything was done', None)] if env.success else []
    after = env.privileged().bodies
    heights = _resting_heights(env, expected, places)
    moved = [(name, text) for name, height in heights.items()
             if (text := _motion(before[name], after[name], height))]
    reasons = [_obstacle(env, name, places[name], before, heights) for name, _ in moved]
    for (name, text), obstacle in zip(moved, reasons, strict=True):
        # What falls onto an edge may push others that have nothing in their own way.
        reason = f'falls onto {obstacle}' if obstacle else 'is pushed by the one that falls'
        findings.append(Finding(f'state {init_state}: {name} {text}',
                                reason if any(reasons) else None))
    return findings


def _motion(before: Pose, after: Pose, height: float) -> str | None:
    """Return how an object moved other than straight down to a height [m], if it did."""
    rise = after[0][2] - height
    drift = float(np.linalg.norm(after[0][:2] - before[0][:2]))
    overlap = min(abs(float(after[1] @ before[1])), 1.0)
    tilt = float(np.degrees(2 * np.arccos(overlap)))
    if abs(rise) < HEIGHT_TOLERANCE and drift < _DRIFT_TOLERANCE and tilt < _TILT_TOLERANCE_DEG:
        return None
    return f'rests {1e3 * rise:+.1f} mm off, moves {1e3 * drift:.1f} mm, turns {tilt:.1f} deg'


def _places(env: LiberoEnv) -> dict[str, str]:
    """Return what the task file puts each movable object on or into."""
    from libero.libero.envs.bddl_utils import robosuite_parse_problem
    problem = robosuite_parse_problem(str(env.task_info.bddl_path))
    movable = {name for names in problem['objects'].values() for name in names}
    return {state[1]: state[2] for state in problem['initial_state']
            if len(state) == 3 and state[1] in movable}


def _obstacle(
    env: LiberoEnv, name: str, place: str, before: Mapping[str, Pose],
    heights: Mapping[str, float],
) -> str | None:
    """
    Return the body that an object meets, other than its support, on its way straight down.

    Every object is put where its initial state has it, at its resting height; `name` is then
    lowered from its own initial height.  The scene is changed.
    """
    model, data = env.model, env.data
    for other, height in heights.items():
        data.joint(f'{other}_joint0').qpos[:] = (*before[other][0][:2], height, *before[other][1])
    sites = {model.site(k).name for k in range(model.nsite)}
    supports = {0, *(model.site(place).bodyid if place in sites
                     else [model.body(f'{place}_main').id])}
    body, qpos = model.body(f'{name}_main').id, data.joint(f'{name}_joint0').qpos
    fall = max(before[name][0][2] - heights[name], 0.0)  # floor states start below the ground
    for above in np.arange(fall, -_LOWERING, -_LOWERING):
        qpos[2] = heights[name] + max(above, 0.0)
        mujoco.mj_forward(model, data)
        for pair in data.contact.geom:
            touching = {int(model.geom_bodyid[geom]) for geom in pair}
            if body in touching and (others := touching - {body} - supports):
                return str(model.body(others.pop()).name)
    return None


def _resting_heights(
    env: LiberoEnv, expected: Mapping[str, Any], places: Mapping[str, str],
) -> dict[str, float]:
    """Return the expected height of every movable object's origin in the world [m]."""
    table = next(_WORKSPACES[name] for name in _WORKSPACES
                 if any(place.startswith(name) for place in places.values()))
    heights = {}
    for name, place in places.items():
        support = table
        if place in _SURFACES:
            fixture = place.split('_1_')[0] + '_1'  # unless the place is itself an object
            base = table if place in places else env.privileged().bodies[fixture][0][2]
            support = base + _SURFACES[place]
        heights[name] = support + expected['rest_height_m'][name.rsplit('_', 1)[0]]
    return heights

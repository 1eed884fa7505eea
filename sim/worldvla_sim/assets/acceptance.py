# SPDX-License-Identifier: Apache-2.0
"""Compare assets with what LIBERO's tasks expect: state layout, resting poses, goals.

Each function returns sentences that say what does not fit; none means that all fits.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np

from worldvla_ros.errors import AssetError
from worldvla_sim.libero_env import NO_OP, LiberoEnv
from worldvla_sim.tasks import initial_states

EXPECTED_FILE = Path(__file__).parents[3] / 'test' / 'sim' / 'expected_state_layout.json'
SETTLE_STEPS = 20  # no-op control steps, one second
HEIGHT_TOLERANCE = 0.001  # [m]
_DRIFT_TOLERANCE = 0.001  # [m] sideways between the stored and the settled pose
_TILT_TOLERANCE_DEG = 2.0
_ROBOT_JOINTS = 9  # seven of the arm, two of the gripper
_WORKSPACES = {  # height of what objects stand on [m]
    'floor': 0.0, 'main_table': 0.9, 'kitchen_table': 0.9, 'living_room_table': 0.4368,
    'study_table': 0.885,
}
# Surfaces of fixtures above the fixture's origin, of objects above what they stand on [m].
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
        return json.loads(path.read_text())
    except OSError as error:
        raise AssetError(
            f'cannot read the expectations {path}: {error.strerror}; run this from a checkout of '
            'the repository or name the file with --expected') from error


def layout_misfits(env: LiberoEnv, expected: Mapping[str, Any]) -> list[str]:
    """Compare joint names, order, addresses and state width with the official layout."""
    task = next(entry for entry in expected['tasks']
                if (entry['suite'], entry['task']) == (env.suite, env.task))
    model = env.model
    names = [model.joint(k).name for k in range(_ROBOT_JOINTS, model.njnt)]
    addresses = [int(model.jnt_qposadr[k]) for k in range(_ROBOT_JOINTS, model.njnt)]
    widths = {
        'nq': (model.nq, task['nq']), 'nv': (model.nv, task['nv']),
        'state width': (1 + model.nq + model.nv, initial_states(env.task_info).shape[1]),
        'joints': (names, task['joints']), 'addresses': (addresses, task['qpos_addresses']),
    }
    return [f'{key} {got}, expected {want}' for key, (got, want) in widths.items() if got != want]


def settle_misfits(env: LiberoEnv, init_state: int, expected: Mapping[str, Any]) -> list[str]:
    """
    Let an official initial state settle and compare heights, places and attitudes.

    Heights are compared with those measured with LIBERO's own assets; sideways and in attitude an
    object must stay where the initial state puts it, because official states were stored just
    above the resting pose.
    """
    env.reset(init_state, settle_steps=0)
    before = env.privileged().bodies
    misfits = []
    for _ in range(SETTLE_STEPS):
        env.step(NO_OP)
    if env.success:
        misfits.append('successful before anything was done')
    after = env.privileged().bodies
    for name, height in _resting_heights(env, expected).items():
        position, attitude = after[name]
        drift = float(np.linalg.norm(position[:2] - before[name][0][:2]))
        overlap = min(abs(float(attitude @ before[name][1])), 1.0)
        tilt = float(np.degrees(2 * np.arccos(overlap)))
        if abs(position[2] - height) > HEIGHT_TOLERANCE:
            misfits.append(f'{name} rests {1e3 * (position[2] - height):+.1f} mm off')
        if drift > _DRIFT_TOLERANCE or tilt > _TILT_TOLERANCE_DEG:
            misfits.append(f'{name} moves {1e3 * drift:.1f} mm, turns {tilt:.1f} deg')
    return misfits


def _resting_heights(env: LiberoEnv, expected: Mapping[str, Any]) -> dict[str, float]:
    """Return the expected height of every movable object's origin in the world [m]."""
    from libero.libero.envs.bddl_utils import robosuite_parse_problem
    problem = robosuite_parse_problem(str(env.task_info.bddl_path))
    places = {state[1]: state[2] for state in problem['initial_state'] if len(state) == 3}
    fixtures = [name for names in problem['fixtures'].values() for name in names]
    table = next(_WORKSPACES[name] for name in fixtures if name in _WORKSPACES)
    heights = {}
    for category, names in problem['objects'].items():
        for name in names:
            place, support = places[name], table
            if place in _SURFACES:
                fixture = place.split('_1_')[0] + '_1'  # unless the place is itself an object
                base = table if place in places else env.privileged().bodies[fixture][0][2]
                support = base + _SURFACES[place]
            heights[name] = support + expected['rest_height_m'][category]
    return heights

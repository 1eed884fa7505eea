# SPDX-License-Identifier: Apache-2.0
"""Does a policy look where things are? `python -m worldvla_sim.sight --help`.

LIBERO lays its objects within a centimetre or two of the same places. There a policy may succeed
that knows the task and where its arm is, and never looks (LIBERO-PRO, Zhou et al. 2025). So the
expert brings the hand to the object that it is about to take, the object is moved by some
centimetres, and both are asked for the next action. The expert's changes from full speed one way
to full speed the other; the share of that in the policy's action is how much it looks: 1 for one
that does as the expert does, 0 for one that goes by heart.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import sys

import numpy as np
from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.errors import ConfigError
from worldvla_ros.policy.named_checkpoints import NAMES
from worldvla_sim.collect import UNSEEN
from worldvla_sim.commands import (
    EXIT_OK,
    MAX_SEED,
    end_as_on_ctrl_c,
    parse_indices,
    seed,
    telling,
)
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.expert.scene import Scene
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.libero_setup import ASSET_CHOICES, resolve_assets
from worldvla_sim.observation import SimObservation
from worldvla_sim.policies import CheckpointPolicy, EpisodePolicy, checkpoint_name, policy_factory
from worldvla_sim.tasks import SUITES, load_task, suite_tasks

MOVES = (-0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06)  # [m] of the object, along x and then y
_BESIDE, _ABOVE = 0.08, 0.16  # [m] of the hand from the object, when it is moved
_SLOW = 0.5  # of an expert that no longer comes from afar, controller input
_LONGEST = 150  # [step] that the expert may take to come there


@dataclass(frozen=True, eq=False)
class Answers:
    """What both said of one layout: along one axis, for each place of the object."""

    task: int
    axis: int  # 0: x, away from the robot; 1: y
    moves: np.ndarray  # (N,) [m]
    policy: np.ndarray  # (N,) controller input along the axis
    expert: np.ndarray  # (N,)


def look(env: LiberoEnv, policy: EpisodePolicy, seed: int) -> list[Answers]:
    """Ask a policy and the expert about one random layout.

    Nothing is asked where the task takes no object, or one that does not stand on the table.

    :param seed: of the layout.
    """
    observation, scene = env.reset(None, seed=seed), Scene(env)
    name = _brought_to_object(env, observation, scene)
    if name is None or not _stands_free(scene, name):
        return []
    home, answers = scene.position(name)[:2], []
    for axis in (0, 1):
        rows = []
        for move in MOVES:
            env.move_objects({name: home + move * np.eye(2)[axis]})
            if _stands_free(scene, name):
                observation = env.observe()
                rows.append((move, *(_first_action(who, env, observation)[axis]
                                     for who in (policy, ExpertPolicy()))))
        env.move_objects({name: home})
        moves, said, expected = np.array(rows).reshape(-1, 3).T
        answers.append(Answers(env.task, axis, moves, said, expected))
    return answers


def followed(answers: Sequence[Answers]) -> float:
    """Return the share of the expert's change that is in the policy's; NaN without any.

    The slope of the line through both, each layout's mean taken off.
    """
    if not answers:
        return float('nan')
    pairs = [(one.policy - one.policy.mean(), one.expert - one.expert.mean())
             for one in answers]
    policy, expert = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return float(policy @ expert / (expert @ expert))


def _brought_to_object(env: LiberoEnv, observation: SimObservation, scene: Scene
                       ) -> str | None:
    """Let the expert come near what it is about to take, and return its name."""
    expert = ExpertPolicy()
    expert.start(env, observation)
    wanted = [predicate[1] for predicate in env.goal if predicate[1] in env.loose_objects]
    for _ in range(_LONGEST):
        action = expert.act(observation)
        for name in wanted:
            away = observation.ee_position - scene.position(name)
            if (action[6] < 0 and np.linalg.norm(away[:2]) < _BESIDE and away[2] < _ABOVE
                    and np.abs(action[:2]).max() < _SLOW):
                return name
        observation = env.step(action)
    return None


def _stands_free(scene: Scene, name: str) -> bool:
    """Whether nothing but the table is where the object was put."""
    return all('' in pair for pair in scene.contacts() if name in pair)


def _first_action(policy: EpisodePolicy, env: LiberoEnv, observation: SimObservation
                  ) -> np.ndarray:
    policy.start(env, observation)
    return np.asarray(policy.act(observation))


def table(answers: Sequence[Answers], instructions: Callable[[int], str]) -> str:
    """Return what was followed, per task and axis and in all."""
    def row(label: str, some: Sequence[Answers], what: str) -> str:
        shares = [followed([one for one in some if one.axis == axis]) for axis in (0, 1)]
        return f'{label:>5} {len(some) // 2:8d} {shares[0]:7.2f} {shares[1]:7.2f}  {what}'
    tasks = sorted({one.task for one in answers})
    rows = [row(str(task), [one for one in answers if one.task == task], instructions(task))
            for task in tasks]
    return '\n'.join([' task  layouts       x       y  share of the expert\'s change', *rows,
                      row('all', answers, '')])


def _layouts(options: argparse.Namespace, tasks: Sequence[int], assets: str, size: int,
             wrist: bool) -> Iterator[tuple[LiberoEnv, int]]:
    for task in tasks:
        with LiberoEnv(options.suite, task, assets=assets, image_size=size, wrist=wrist) as env:
            for layout in range(options.seed, options.seed + options.layouts):
                yield env, layout


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m worldvla_sim.sight',
        description='Move the object before the hand, and measure how much of the expert\'s '
                    'answer is in the policy\'s: 1 looks, 0 goes by heart.')
    parser.add_argument('--policy', required=True, metavar='NAME|FOLDER',
                        help=f'{", ".join(NAMES)}, or the folder of a checkpoint')
    parser.add_argument('--suite', required=True, help=', '.join(SUITES))
    parser.add_argument('--tasks', type=parse_indices, help='such as 0,3-5 (default: all)')
    parser.add_argument('--layouts', type=positive_int, default=3, help='per task (default: 3)')
    parser.add_argument('--assets', choices=ASSET_CHOICES, default='auto')
    parser.add_argument('--seed', type=seed, default=UNSEEN,
                        help='of the first layout (default: %(default)s, which `collect` never '
                             'reaches; by heart a policy answers in those it was trained on)')
    return parser


@telling
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 when it measured, 2 on bad input, 130 on Ctrl-C."""
    options = _parser().parse_args(argv)
    if options.seed + options.layouts - 1 > MAX_SEED:
        raise ConfigError(f'--seed {options.seed} leaves no room for {options.layouts} layouts: '
                          f'seeds end at {MAX_SEED}')
    policy = policy_factory(options.policy)()
    size = policy.image_size or 256
    tasks = options.tasks or range(len(suite_tasks(options.suite)))
    assets = resolve_assets(options.assets).kind
    answers: list[Answers] = []
    with tqdm(total=len(tasks) * options.layouts, unit='layout') as bar:
        for env, layout in _layouts(options, tasks, assets, size, policy.needs_wrist):
            answers += look(env, policy, layout)
            bar.update()
    print(table(answers, lambda task: load_task(options.suite, task).instruction))
    named = f', {checkpoint_name(options.policy)}' if isinstance(policy, CheckpointPolicy) else ''
    print(f'{options.suite}; {options.policy}{named}; {assets} assets; seeds {options.seed} to '
          f'{options.seed + options.layouts - 1}')
    return EXIT_OK


if __name__ == '__main__':
    end_as_on_ctrl_c()
    sys.exit(main())

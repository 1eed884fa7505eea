# SPDX-License-Identifier: Apache-2.0
"""How each of the 40 tasks is done: skills, with the numbers that the task needs."""

from collections.abc import Callable

from worldvla_ros.errors import SimulationError
from worldvla_sim.expert.robot import Robot
from worldvla_sim.expert.skills import Motion, put

Recipe = Callable[[Robot], Motion]
Step = Callable[[Robot], Motion]


def sequence(*steps: Step) -> Recipe:
    """Do steps one after the other, whatever each returns."""
    def recipe(robot: Robot) -> Motion:
        for step in steps:
            yield from step(robot)
        return True
    return recipe


def step(skill: Callable[..., Motion], *arguments: object, **options: object) -> Step:
    """Fix a skill's arguments but for the robot."""
    return lambda robot: skill(robot, *arguments, **options)


_GROCERIES = ('alphabet_soup', 'cream_cheese', 'salad_dressing', 'bbq_sauce', 'ketchup',
              'tomato_sauce', 'butter', 'milk', 'chocolate_pudding', 'orange_juice')
_BASKET = 'basket_1_contain_region'
_BOWL, _PLATE = 'akita_black_bowl_1', 'plate_1'

RECIPES: dict[tuple[str, int], Recipe] = {
    **{('libero_object', task): sequence(step(put, f'{name}_1', _BASKET, offset=(0, 0, 0.12)))
       for task, name in enumerate(_GROCERIES)},
    **{('libero_spatial', task): sequence(step(put, _BOWL, _PLATE)) for task in range(10)},
}


def recipe_for(suite: str, task: int) -> Recipe:
    """Return the recipe of a task.

    :raises SimulationError: there is none.
    """
    if (suite, task) not in RECIPES:
        raise SimulationError(f'there is no scripted expert for {suite} task {task}')
    return RECIPES[suite, task]

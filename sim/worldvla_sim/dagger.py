# SPDX-License-Identifier: Apache-2.0
"""Let a policy and the expert take turns, with the expert's label at every step.

As in DAgger (Ross et al. 2011), labels are what the expert would do in the states that the policy
visits. As in HG-DAgger (Kelly et al. 2019), whoever has the arm keeps it for a while, so that the
policy gets far enough to make its own mistakes and the expert shows how to get out of them.

A policy that plans chunks is taught chunks: labels of the steps that follow are of places where
the policy went instead. So, where asked for, the expert plays ahead from steps of the policy.
"""

from dataclasses import dataclass

import numpy as np

from worldvla_ros.errors import ConfigError
from worldvla_sim.demonstrations import DemonstrationRecorder
from worldvla_sim.expert.noise import ActionNoise
from worldvla_sim.expert.policy import ExpertPolicy
from worldvla_sim.libero_env import LiberoEnv
from worldvla_sim.look_ahead import look_ahead
from worldvla_sim.policies import POLICIES, EpisodePolicy, checkpoint_folder, policy_factory
from worldvla_sim.scattering import Scattering

POLICY_STEPS, EXPERT_STEPS = (20, 90), (10, 40)  # shortest and longest turn of each
_OTHER_STEPS = {'drift': ((4, 16), (15, 60))}  # likewise, of these policies and the expert
EXPERT_FINISHES = 0.6  # of the suite's step limit, from where only the expert acts
STEP_LIMIT = 1.5  # times the suite's: what the policy spoiled takes time to put right
_LOOKS_AHEAD = 3  # every so many steps of the policy: a step later little is new


@dataclass(frozen=True)
class LearnerSettings:
    """Who takes turns with the expert, and for how long; all that decides its episodes."""

    name: str  # of the registry, or a checkpoint's folder
    weights: str | None  # fingerprint of the checkpoint; None for a policy of the registry
    policy_steps: tuple[int, int] = POLICY_STEPS
    expert_steps: tuple[int, int] = EXPERT_STEPS
    expert_finishes: float = EXPERT_FINISHES
    step_limit: float = STEP_LIMIT
    chunk: int = 0  # actions that the expert is asked for at steps of the policy; 0: the next one
    beside_weights: str | None = None  # fingerprint of the checkpoint's settings and tokenizers


def learner_settings(name: str, chunk: int = 0) -> LearnerSettings:
    """Describe the policy of a name or folder.

    :param chunk: as of `LearnerSettings`.
    :raises ConfigError: neither a known name nor a folder, or it is the expert itself.
    :raises CheckpointError: the folder holds no checkpoint.
    """
    policy_factory(name)
    if name == 'expert':
        raise ConfigError('the expert cannot take turns with itself; leave --policy out for plain '
                          'demonstrations, or name a checkpoint')
    if name in POLICIES:
        turns = _OTHER_STEPS.get(name, (POLICY_STEPS, EXPERT_STEPS))
        return LearnerSettings(name, None, *turns, chunk=chunk)
    from worldvla_ros.policy.pretrained import (  # imports torch
        fingerprint,
        fingerprint_beside_weights,
    )
    folder = checkpoint_folder(name).resolve()
    return LearnerSettings(str(folder), fingerprint(folder), chunk=chunk,
                           beside_weights=fingerprint_beside_weights(folder))


class Turns:
    """Who acts at each step of an episode, drawn from a seed.

    :param steps: of the suite's limit.
    """

    def __init__(self, settings: LearnerSettings, steps: int, seed: int) -> None:
        random = np.random.default_rng((seed, 1))  # another stream than the noise's
        last = round(settings.expert_finishes * steps)
        self._expert_acts = np.ones(last, dtype=bool)
        start, policy_acts = 0, bool(random.integers(2))
        while start < last:
            shortest, longest = settings.policy_steps if policy_acts else settings.expert_steps
            end = start + int(random.integers(shortest, longest + 1))
            self._expert_acts[start:end] = not policy_acts
            start, policy_acts = end, not policy_acts

    def expert_acts(self, step: int) -> bool:
        """Whether it is the expert's turn."""
        return step >= len(self._expert_acts) or bool(self._expert_acts[step])


def record_turns(env: LiberoEnv, expert: ExpertPolicy, learner: EpisodePolicy,
                 settings: LearnerSettings, seed: int, noise: float, scatter: float = 0.0
                 ) -> DemonstrationRecorder | None:
    """Play a random reset in turns; None when it did not succeed in time.

    :param noise: standard deviation of what is added to the expert's own motion.
    :param scatter: how far objects are moved on the way [m].
    :raises ConfigError: the policy needs images of another size than the environment renders, or
        the wrist camera, which it does not.
    """
    observation = env.reset(None, seed=seed)
    size = len(observation.agentview) if observation.agentview is not None else None
    if learner.image_size not in (None, size):
        raise ConfigError(f'{settings.name} needs images of {learner.image_size} px, but {size} '
                          f'are recorded; give --image-size {learner.image_size}')
    if learner.needs_wrist and observation.wrist is None:
        raise ConfigError(f'{settings.name} needs the wrist camera, which is not recorded; give '
                          f'--wrist')
    recorder, disturbance = DemonstrationRecorder(env), ActionNoise(noise, seed)
    turns, scattering = Turns(settings, env.max_steps, seed), Scattering(env, scatter, seed)
    expert.start(env, observation)
    begins_anew = True  # the learner, when it acts next
    while not env.success and env.steps < settings.step_limit * env.max_steps:
        if scattering.is_due():
            observation = scattering.scatter()
            recorder.objects_moved()
            begins_anew = True  # what it planned or remembers is of the layout before
        label, expert_acts = expert.act(observation), turns.expert_acts(env.steps)
        chunk = None
        if expert_acts:
            executed = disturbance.perturb(label)
        else:
            if begins_anew:
                learner.start(env, observation)
            executed = np.asarray(learner.act(observation), dtype=np.float64)
            if settings.chunk and env.steps % _LOOKS_AHEAD == 0:
                chunk = look_ahead(env, expert, label, settings.chunk)
        recorder.add(observation, label, executed, expert_acted=expert_acts, chunk=chunk,
                     aim=expert.aim)
        observation = env.step(executed)
        begins_anew = expert_acts  # its history ended when the expert took over
    return recorder if env.success else None

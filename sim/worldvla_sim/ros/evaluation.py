# SPDX-License-Identifier: Apache-2.0
"""Episodes of an evaluation through the real loop: policy node, its worker, bridge and topics.

In lockstep success and steps equal those in one process. Two things see to that: the commands
differ from the policy's actions by the rounding of float64 alone, which the environment removes;
and the worker computes nothing ahead (`control.prepare`), so that the network sees prompts in the
same pieces. The safety stage's limits do not touch an action in LIBERO's range; if it ever changes
a command in lockstep, the episode is an error that says so.
"""

import contextlib
from pathlib import Path
import tempfile
import time

import rclpy
from rclpy.signals import SignalHandlerOptions

from worldvla_ros.errors import SimulationError, WorldVLAError
from worldvla_ros.graph import NodeSpec, demo_graph
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.policy.settings import POLICY_FILE, PolicySettings
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.libero_env import LOCKSTEP
from worldvla_sim.libero_setup import changed_environment
from worldvla_sim.policies import also_reads, checkpoint_folder
from worldvla_sim.ros.domains import claimed_domain
from worldvla_sim.ros.episode_client import PLAYED_TO_THE_END, EpisodeClient
from worldvla_sim.ros.expert_over_ros import ExpertCommander
from worldvla_sim.runner import EpisodeJob, EvaluationSettings, RunOptions

_LOAD_TIMEOUT = 600.0  # [s] the largest models on slow disks
_ANSWER_TIMEOUT = 300.0  # [s] one chunk of the largest models without a GPU
_STALL_TIMEOUT = _ANSWER_TIMEOUT + 30.0  # [s] after the node's own, which says more


class RosEpisodeRunner:
    """Plays jobs through nodes of its own in a ROS domain of its own; starts them when needed.

    :raises WorldVLAError: from a call, when the episode cannot be played to its end. The nodes
        are started anew for the next one then.
    """

    def __init__(self, settings: EvaluationSettings, options: RunOptions) -> None:
        self._settings = settings
        self._options = options
        self.process_ids: dict[str, int] = {}  # of the nodes, by their names
        self._nodes = contextlib.ExitStack()
        self._client: EpisodeClient | ExpertCommander | None = None

    def __call__(self, job: EpisodeJob) -> EpisodeRecord:
        """Play one episode."""
        try:
            self._client = self._client or self._start()
            if isinstance(self._client, ExpertCommander):
                return self._client.play(self._settings, job)
            return self._play(self._client, job)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the nodes; safe to repeat."""
        self._client = None
        self._nodes.close()

    def _start(self) -> EpisodeClient | ExpertCommander:
        domain = self._nodes.enter_context(claimed_domain())
        self._nodes.enter_context(changed_environment(
            ROS_DOMAIN_ID=str(domain), ROS_AUTOMATIC_DISCOVERY_RANGE='LOCALHOST',
            ROS_STATIC_PEERS=None))
        logs = Path(self._nodes.enter_context(tempfile.TemporaryDirectory(
            prefix='worldvla_nodes_', ignore_cleanup_errors=True)))
        graph = evaluation_graph(self._settings, self._options.threads)
        processes = self._nodes.enter_context(ProcessGroup(graph, logs))
        self.process_ids = processes.process_ids
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        self._nodes.callback(rclpy.utilities.try_shutdown)
        if not self._settings.checkpoint:
            return self._nodes.enter_context(contextlib.closing(ExpertCommander(processes)))
        client = EpisodeClient(processes, frames=self._options.videos is not None,
                               start_timeout=_LOAD_TIMEOUT, stall_timeout=_STALL_TIMEOUT)
        client.wait_until_ready()
        return client

    def _play(self, client: EpisodeClient, job: EpisodeJob) -> EpisodeRecord:
        settings, videos = self._settings, self._options.videos
        began = time.perf_counter()
        seen = client.play(settings.suite, job.task, job.init_state, seed=settings.seed)
        final = seen.final
        assert final is not None, 'play returns finished episodes'
        if final.state not in PLAYED_TO_THE_END:
            raise SimulationError(final.error or f'the episode ended as {seen.state}')
        if seen.limited and settings.mode == LOCKSTEP:
            raise WorldVLAError(f'the safety stage changed {seen.limited} commands, so this is '
                                f'not what the policy would do in one process')
        record = EpisodeRecord(
            settings.suite, job.task, seen.instruction, job.init_state, final.success,
            final.step, None, final.assets, round(time.perf_counter() - began, 3),
            policy=client.policy, image_size=_image_size(settings),
            also_reads=also_reads(_policy_settings(settings)))
        return videos.keep(record, seen.ordered_frames) if videos else record


def evaluation_graph(settings: EvaluationSettings, threads: int = 1) -> list[NodeSpec]:
    """Return the nodes with the settings of an evaluation; the bridge alone for the expert.

    :param threads: of torch, in the worker of the policy node.
    """
    policy, bridge = demo_graph({'checkpoint': settings.policy, 'device': settings.device,
                                 'mode': settings.mode, 'assets': settings.assets})
    bridge.parameters.update({
        'robot': settings.robot, 'msaa': settings.msaa, 'image_size': _image_size(settings),
        'max_steps': settings.max_steps or 0})
    policy.parameters.update({
        'control.replan_steps': settings.execute or 0, 'worker.threads': threads,
        'control.prepare': settings.mode != LOCKSTEP, 'worker.load_timeout': _LOAD_TIMEOUT,
        'worker.answer_timeout': _ANSWER_TIMEOUT})
    return [policy, bridge] if settings.checkpoint else [bridge]


def _image_size(settings: EvaluationSettings) -> int:
    """Return the side of the pictures [px]: what the checkpoint was trained on."""
    if not settings.checkpoint:
        return settings.image_size
    return _policy_settings(settings).image_size


def _policy_settings(settings: EvaluationSettings) -> PolicySettings:
    return PolicySettings.load(checkpoint_folder(settings.policy) / POLICY_FILE)

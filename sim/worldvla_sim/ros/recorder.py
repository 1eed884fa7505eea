# SPDX-License-Identifier: Apache-2.0
"""Records one episode of the loop: frames, chunks, latencies; afterwards a video and a row."""

from dataclasses import dataclass, field
from pathlib import Path
import sys
import time

import numpy as np

from worldvla_ros.datatypes import ACTION_DIM
from worldvla_ros.msg import ActionChunk, DeltaAction, Episode
from worldvla_ros.nodes.conversions import to_ns
from worldvla_sim.videos import save_episode_video

STATE_NAMES = {Episode.STATE_IDLE: 'idle', Episode.STATE_RUNNING: 'running',
               Episode.STATE_SUCCESS: 'success', Episode.STATE_TIMEOUT: 'no success',
               Episode.STATE_ERROR: 'ERROR', Episode.STATE_ABORTED: 'aborted'}


@dataclass
class EpisodeRecording:
    """All that is kept of one episode while it runs."""

    instruction: str = ''
    frames: dict[int, np.ndarray] = field(default_factory=dict)  # stamp [ns] -> (H, W, 3) uint8
    chunks: list[ActionChunk] = field(default_factory=list)
    commands: int = 0  # that moved, or were held by the safety stage
    limited: int = 0  # changed or held by the safety stage
    final: Episode | None = None
    started: float = field(default_factory=time.monotonic)  # [s]
    ended: float = 0.0  # [s]

    def begin(self, first_ns: int) -> None:
        """Note the stamp of the first frame; what was seen before is of another episode."""
        self.frames = {stamp: image for stamp, image in self.frames.items() if stamp >= first_ns}
        self.started = time.monotonic()

    def add_frame(self, stamp_ns: int, image: np.ndarray) -> None:
        """Keep a frame; one that is repeated counts once."""
        if stamp_ns <= self._last_ns:
            self.frames.setdefault(stamp_ns, image)

    def add_chunk(self, message: ActionChunk) -> None:
        """Keep a chunk; the policy may plan after the last frame, too, until it is told to end."""
        if to_ns(message.frame_stamps[-1]) < self._last_ns:
            self.chunks.append(message)

    def add_action(self, message: DeltaAction) -> None:
        """Count a command of the policy; a sign of life in between is none."""
        if message.chunk_sequence:
            self.commands += 1
            self.limited += message.verdict != DeltaAction.VERDICT_PASS

    def finish(self, final: Episode) -> None:
        """Note how it ended; what is seen afterwards is no part of it."""
        self.final, self.ended = final, time.monotonic()
        frames, chunks = self.frames, self.chunks
        self.frames, self.chunks = {}, []
        for stamp, image in frames.items():
            self.add_frame(stamp, image)
        for chunk in chunks:
            self.add_chunk(chunk)

    @property
    def _last_ns(self) -> int:
        """Stamp of the last frame, if it is known yet."""
        return to_ns(self.final.header.stamp) if self.final else sys.maxsize

    @property
    def state(self) -> str:
        """How it ended, in words."""
        return STATE_NAMES[self.final.state] if self.final else 'unfinished'

    @property
    def ordered_frames(self) -> list[np.ndarray]:
        """The frames in the order of their stamps."""
        return [image for _, image in sorted(self.frames.items())]

    @property
    def latencies(self) -> np.ndarray:
        """Latency of each chunk [s]."""
        return np.array([chunk.latency_total for chunk in self.chunks])

    @property
    def control_rate(self) -> float:
        """Control steps per second of wall time [Hz]."""
        return self.final.step / (self.ended - self.started) if self.final else 0.0

    def save_video(self, path: Path) -> None:
        """Write the episode as an mp4 in real time, with step and outcome below the picture."""
        save_episode_video(path, self.ordered_frames, self.instruction, self.state)

    def save_chunks(self, path: Path) -> None:
        """Write the chunks for the replay backend: `actions` (N, horizon, 7)."""
        actions = [np.array(chunk.actions, np.float32).reshape(chunk.horizon, ACTION_DIM)
                   for chunk in self.chunks]
        np.savez_compressed(path, actions=np.stack(actions))


def summary_row(record: EpisodeRecording) -> dict[str, object]:
    """Return the numbers of an episode for the table and the JSON file."""
    final, latencies = record.final, record.latencies
    assert final is not None, 'finish comes first'
    p50, p99 = (np.percentile(1e3 * latencies, [50, 99]).round(1).tolist() if record.chunks
                else (None, None))
    return {
        'suite': final.suite, 'task': final.task, 'init_state': final.init_state,
        'instruction': record.instruction, 'steps': final.step, 'success': final.success,
        'outcome': record.state, 'error': final.error or None, 'assets': final.assets,
        'mode': final.mode, 'control_rate_hz': round(record.control_rate, 1),
        'chunks': len(record.chunks), 'limited_commands': record.limited,
        'latency_p50_ms': p50, 'latency_p99_ms': p99,
    }

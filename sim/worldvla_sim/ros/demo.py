# SPDX-License-Identifier: Apache-2.0
"""`make demo`: start the graph, play LIBERO episodes over topics, show what came of it."""

import argparse
from collections.abc import Iterator, Sequence
import json
import os
from pathlib import Path
import re
import sys

import rclpy
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from worldvla_ros.arguments import positive_int
from worldvla_ros.errors import WorldVLAError
from worldvla_ros.graph import DEMO_ARGUMENTS, demo_graph
from worldvla_ros.msg import Episode
from worldvla_ros.nodes.process_group import ProcessGroup
from worldvla_ros.whole_files import write_whole
from worldvla_sim.commands import (
    EXIT_ERRORS,
    EXIT_INTERRUPTED,
    EXIT_OK,
    end_as_on_ctrl_c,
    parse_indices,
)
from worldvla_sim.pictures import evenly_spaced, save_contact_sheet
from worldvla_sim.ros.episode_client import EpisodeClient
from worldvla_sim.ros.recorder import EpisodeRecording, summary_row
from worldvla_sim.runner import EpisodeJob, make_jobs
from worldvla_sim.tasks import SUITES, load_task

_SHEET_COLUMNS = 8
_ROWS, _SHEET = 'episodes.json', 'contact_sheet.png'


def play_with_bar(client: EpisodeClient, suite: str, task: int, init_state: int,
                  title: str) -> EpisodeRecording:
    """Play one episode behind a progress bar."""
    # A log file gets a line every few seconds, a terminal a smooth bar.
    interval = 0.1 if sys.stderr.isatty() else 5.0
    with tqdm(desc=title, unit='step', dynamic_ncols=True, mininterval=interval) as bar:
        def show(episode: Episode) -> None:
            bar.total = episode.max_steps
            bar.update(episode.step - bar.n)
            if episode.state != Episode.STATE_RUNNING:
                bar.set_postfix_str('success' if episode.success else 'no success')
        return client.play(suite, task, init_state, on_step=show)


def play_demo(options: argparse.Namespace, out: Path) -> Iterator[dict[str, object]]:
    """Play all episodes and yield a row of each, when it is in `episodes.json`.

    Videos, chunks and a contact sheet come beside it in `out`. What cannot be played to its end
    is the row of an error, and the next episode is played.
    """
    policy, bridge = demo_graph({name: getattr(options, name) for name in DEMO_ARGUMENTS})
    bridge.parameters['max_steps'] = options.max_steps or 0
    jobs = make_jobs(options.suite, options.tasks, options.init_states)
    out.mkdir(parents=True, exist_ok=True)
    remove_results(out)
    rows, sheet = [], []
    with ProcessGroup([policy, bridge], out) as processes:
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # Ctrl-C ends the block
        try:
            client = EpisodeClient(processes)
            print('starting the policy and the simulator ...', flush=True)
            client.wait_until_ready()
            print(f'policy: {client.policy}', flush=True)
            for number, job in enumerate(jobs, 1):
                try:
                    record = play_with_bar(client, options.suite, job.task, job.init_state,
                                           f'{number}/{len(jobs)}')
                except WorldVLAError as error:
                    record = _error_record(options, job, error)
                rows.append({**summary_row(record), 'policy': client.policy})
                _write_rows(rows, out)
                yield rows[-1]
                _save_pictures(record, out / f'{options.suite}_task{job.task}_'
                                             f'init{job.init_state}')
                sheet.append((f'task {job.task}, initial state {job.init_state}: '
                              f'{record.instruction} - {record.state}',
                              evenly_spaced(record.ordered_frames, _SHEET_COLUMNS)))
                if any(frames for _, frames in sheet):
                    write_whole(out / _SHEET, lambda draft: save_contact_sheet(draft, sheet))
        finally:
            rclpy.utilities.try_shutdown()


def remove_results(out: Path) -> None:
    """Remove what an earlier run left, so that all that is there is of this one."""
    of_an_episode = re.compile(rf'({"|".join(SUITES)})_task\d+_init\d+(\.mp4|_chunks\.npz)')
    for path in out.iterdir():
        if path.name in (_ROWS, _SHEET) or of_an_episode.fullmatch(path.name):
            path.unlink()


def _error_record(options: argparse.Namespace, job: EpisodeJob, error: WorldVLAError
                  ) -> EpisodeRecording:
    """Return the record of an episode that could not be played to its end."""
    record = EpisodeRecording(load_task(options.suite, job.task).instruction)
    record.finish(Episode(state=Episode.STATE_ERROR, suite=options.suite, task=job.task,
                          init_state=job.init_state, error=str(error), assets=options.assets,
                          mode=options.mode))
    return record


def _save_pictures(record: EpisodeRecording, stem: Path) -> None:
    """Write video and chunks; an episode that ended as an error may have none."""
    if record.frames:
        record.save_video(stem.with_name(f'{stem.name}.mp4'))
    if record.chunks:
        record.save_chunks(stem.with_name(f'{stem.name}_chunks.npz'))


def _write_rows(rows: Sequence[dict[str, object]], out: Path) -> None:
    write_whole(out / _ROWS, lambda draft: draft.write_text(json.dumps(rows, indent=1) + '\n'))


def print_table(rows: list[dict[str, object]]) -> None:
    """Print one line per episode, and which assets, policy and mode they belong to."""
    print(f'\n{"task":>4} {"init":>4} {"steps":>5}  {"outcome":<10} {"steps/s":>7} '
          f'{"p50 ms":>7} {"p99 ms":>7}  instruction')
    for row in rows:
        p50, p99 = ('-' if row[name] is None else row[name]
                    for name in ('latency_p50_ms', 'latency_p99_ms'))
        print(f'{row["task"]:>4} {row["init_state"]:>4} {row["steps"]:>5}  {row["outcome"]:<10} '
              f'{row["control_rate_hz"]:>7} {p50:>7} {p99:>7}  {row["instruction"]}')
    ran = [row for row in rows if row['error'] is None]
    first = (ran or rows)[0]
    print(f'\nsuccess {sum(bool(row["success"]) for row in ran)} of {len(ran)}, errors '
          f'{len(rows) - len(ran)} ({first["suite"]}, {first["assets"]} assets, {first["mode"]}, '
          f'{first["policy"]})')
    for row in rows:
        if row['error'] is not None:
            print(f'error in task {row["task"]}, initial state {row["init_state"]}: '
                  f'{row["error"]}')
    if 'random weights' in str(first['policy']):
        print('The weights are random, so the arm moves without aim and success is not expected: '
              'this shows the loop,\nnot a skill.')


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog='make demo ARGS=...', description=__doc__)
    parser.add_argument('--suite', default='libero_object')
    parser.add_argument('--tasks', type=parse_indices, default=[7, 8, 9], help='such as 0,3-5')
    parser.add_argument('--init-states', type=parse_indices, default=[0], help='e.g. 0-2')
    parser.add_argument('--max-steps', type=positive_int,
                        help='control steps of an episode (default: the published limit)')
    parser.add_argument('--out', type=Path, default=Path('out/demo'))
    for name, argument in DEMO_ARGUMENTS.items():
        parser.add_argument(f'--{name.replace("_", "-")}', default=argument.default,
                            help=argument.doc, choices=argument.choices or None)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the demo; errors are told in one line, not as a traceback."""
    options = parse_options(None)
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    end_as_on_ctrl_c()
    rows: list[dict[str, object]] = []
    status = EXIT_OK
    try:
        for row in play_demo(options, options.out):
            rows.append(row)
    except (WorldVLAError, OSError) as error:
        print(f'the demo failed: {error}\nlogs: {options.out}/*.log', file=sys.stderr)
        status = EXIT_ERRORS
    except KeyboardInterrupt:
        print('\ninterrupted; all nodes are stopped', file=sys.stderr)
        status = EXIT_INTERRUPTED
    if rows:
        print_table(rows)
        print(f'videos, pictures and logs: {options.out}/')
    if status == EXIT_OK and any(row['error'] is not None for row in rows):
        status = EXIT_ERRORS
    return status

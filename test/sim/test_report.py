# SPDX-License-Identifier: Apache-2.0
"""The report is one valid page that says what was measured with what, beside published rates."""

import base64
from dataclasses import asdict, replace
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from worldvla_ros.errors import ConfigError
from worldvla_sim import report
from worldvla_sim.baselines import BASELINES, EPISODES
from worldvla_sim.episodes import EpisodeRecord
from worldvla_sim.results import Results
from worldvla_sim.runner import EvaluationSettings
from worldvla_sim.tasks import SUITES
from worldvla_sim.videos import EpisodeVideos

CHECKPOINT = 'mini <1>, sha256:abc'


def results(suite='libero_object', successes=3, failures=1, error=None, **settings):
    """A result file with one task."""
    chosen = EvaluationSettings('folder', suite, 'builtin', checkpoint=CHECKPOINT, **settings)

    def record(state, success, error=None):
        return EpisodeRecord(suite, 2, 'pick & place', state, success, 100, error, 'builtin', 2.0,
                             policy=CHECKPOINT, robot='light', image_size=128, over=chosen.over,
                             mode=chosen.mode)
    records = [record(state, state < successes) for state in range(successes + failures)]
    records += [record(99, False, error)] if error else []
    runs = [{'command': f'python -m {name}', 'versions': {'a': 1}} for name in 'xy']
    return Results(asdict(chosen), records, True, runs)


def rows(page):
    """Text of every table row, cells joined by |."""
    return ['|'.join(' '.join(cell.itertext()) for cell in row)
            for row in ElementTree.fromstring(page).iter('tr')]


def row_with(page, *texts):
    found, = [row for row in rows(page) if all(text in row for text in texts)]
    return found


def test_the_page_is_valid_and_needs_no_other_file(tmp_path):
    page = report.render_report([results()], tmp_path)
    root = ElementTree.fromstring(page)
    assert root.tag == 'html'
    HTMLParser().feed(page)
    for image in root.iter('img'):
        assert image.get('src').startswith('data:image/')
    assert 'http' not in page


def test_a_policy_stands_beside_the_published_rows_with_its_conditions(tmp_path):
    page = report.render_report(
        [results(), results('libero_goal', 1, 3)], tmp_path)
    ours = row_with(page, 'in one process', CHECKPOINT, 'builtin')
    assert 'lockstep in one process' in ours and '128 px, light robot' in ours
    assert ours.split('|')[5:] == ['-', '75.0% [30%, 95%] of 4', '25.0% [5%, 70%] of 4', '-']
    published = row_with(page, 'WorldVLA (256 px)')
    assert 'official|published|256 px' in published
    assert '89.0% [86%, 91%] of 500' in published


def test_baselines_are_the_published_numbers_in_the_order_of_the_suites():
    assert SUITES == ('libero_spatial', 'libero_object', 'libero_goal', 'libero_10')
    small, large, *_ = BASELINES
    assert (small.rates, large.rates) == ((0.856, 0.89, 0.826, 0.59), (0.876, 0.962, 0.834, 0.6))
    assert small.successes('libero_object') == 445 and EPISODES == 500


def test_errors_are_counted_apart_and_listed(tmp_path):
    page = report.render_report([results(error='the bridge <died>')], tmp_path)
    assert '3/4|75.0% [30%, 95%]|1|100|2.0' in row_with(page, 'pick & place', '3/4')
    assert 'the bridge <died>' in row_with(page, 'the bridge')
    assert '4 episodes ran, 3 succeeded; 1 ended in an error' in page


def test_an_error_takes_no_part_in_the_conditions_of_a_run(tmp_path):
    """Pins a bug: its record says what was asked for, in other words than what ran."""
    given = results(error='x')
    given.records[-1] = replace(given.records[-1], policy='folder', image_size=0, robot='full')
    page = report.render_report([given], tmp_path)
    ours = row_with(page, 'in one process', CHECKPOINT, 'builtin')
    assert ours.split('|')[1:5] == ['builtin', CHECKPOINT, '128 px, light robot',
                                    'lockstep in one process']


def test_runs_of_one_policy_are_told_apart_by_what_differs(tmp_path):
    runs = report.group_runs([results(), results(over='ros'), results('libero_goal', over='ros')])
    assert [run.label for run in runs] == [f'{CHECKPOINT}, over {way}'
                                           for way in ('process', 'ros')]
    assert [len(run.results) for run in runs] == [1, 2]
    assert 'lockstep over ROS' in report.render_report(
        [one for run in runs for one in run.results], tmp_path)


def test_failures_are_shown_with_frames_of_their_video(tmp_path):
    given = results(successes=0, failures=2)
    videos = EpisodeVideos(tmp_path / 'videos')
    videos.create()
    frames = [np.full((64, 64, 3), (250, 250, 0), np.uint8)] * 6
    given.records[0] = videos.keep(given.records[0], frames)
    path = tmp_path / 'pages' / 'report.html'
    report.write_report([given], path)
    link, = ElementTree.fromstring(path.read_text()).iter('a')
    assert (path.parent / link.get('href')).resolve() == (
        tmp_path / 'videos/libero_object_task2_init0_failure.mp4')
    strip = base64.b64decode(link[0].get('src').partition('base64,')[2])
    picture = cv2.imdecode(np.frombuffer(strip, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[0] == 150 and picture.shape[1] > 4 * 120
    assert np.abs(picture[60, 60].astype(int) - (0, 250, 250)).max() < 30


def test_a_video_in_a_folder_of_any_name_is_linked(tmp_path):
    """Pins a bug: a browser took # and % in the name for parts of the link."""
    given = results(successes=0, failures=1)
    videos = EpisodeVideos(tmp_path / 'run#2 50%25 "a&b"')
    videos.create()
    given.records[0] = videos.keep(given.records[0], [np.zeros((64, 64, 3), np.uint8)] * 6)
    link, = ElementTree.fromstring(report.render_report([given], tmp_path)).iter('a')
    followed = urlsplit(link.get('href'))
    assert (tmp_path / unquote(followed.path)).is_file() and not followed.fragment


def test_every_run_that_played_some_of_the_episodes_is_told(tmp_path):
    page = report.render_report([results()], tmp_path)
    assert 'python -m x' in page and 'python -m y' in page
    unknown = results()
    unknown.runs = []
    assert 'unknown' in report.render_report([unknown], tmp_path)


def test_an_unfinished_result_and_one_without_episodes_are_said_to_be_so(tmp_path):
    nothing = results(successes=0, failures=0)
    nothing.complete = False
    page = report.render_report([nothing], tmp_path)
    assert '1 of the results are not complete' in page


@pytest.mark.parametrize(('content', 'out', 'message'), [
    ('{}', 'report.html', 'not a result file'), (None, '/proc/nowhere/report.html', '/proc')])
def test_bad_input_is_one_clear_line(content, out, message, tmp_path, capsys):
    path = tmp_path / 'in.json'
    results().save(path)
    if content is not None:
        path.write_text(content)
    assert report.main([str(path), '--out', str(tmp_path / out)]) == 2
    assert message in capsys.readouterr().err


def test_the_command_reads_result_files(tmp_path):
    results().save(tmp_path / 'in.json')
    assert report.main([str(tmp_path / 'in.json'), '--out', str(tmp_path / 'out.html')]) == 0
    assert 'sha256:abc' in (tmp_path / 'out.html').read_text()


def test_a_file_that_is_older_than_a_setting_is_of_the_same_run():
    """Pins a bug: its episodes were counted twice where a newer file has them, too."""
    older = results('libero_goal')
    del older.settings['scatter']
    one, = report.group_runs([older, results()])
    assert len(one.results) == 2
    with pytest.raises(ConfigError, match='give each episode once'):
        report.group_runs([older, results('libero_goal')])


def test_a_suite_without_fixtures_joins_the_run_of_which_all_else_is_the_same():
    """Pins a bug: older evaluations made two rows, though they differ in the suite alone."""
    earlier = {'fixtures': 'of the seed alone'}
    given = [results(), results('libero_goal', **earlier), results('libero_10', **earlier)]
    one, = report.group_runs(given)
    assert one.label == CHECKPOINT and one.results == tuple(given)
    alone, other = report.group_runs([results(), results('libero_goal', seed=1)])
    assert (alone.label, other.label) == (f'{CHECKPOINT}, seed 0', f'{CHECKPOINT}, seed 1')
    runs = report.group_runs([*given, results('libero_goal')])
    assert [len(run.results) for run in runs] == [3, 1]


def test_an_episode_that_is_in_two_files_of_a_run_is_refused_with_both_names(tmp_path, capsys):
    files = [tmp_path / 'a.json', tmp_path / 'b.json', tmp_path / 'other_seed.json']
    for file, seed in zip(files, (0, 0, 1), strict=True):
        results(seed=seed).save(file)
    page = tmp_path / 'page.html'
    assert report.main([*map(str, files), '--out', str(page)]) == 2
    said, = capsys.readouterr().err.splitlines()
    assert 'libero_object task 2, initial state 0' in said and not page.exists()
    assert str(files[0]) in said and str(files[1]) in said
    assert report.main([str(files[0]), str(files[2]), '--out', str(page)]) == 0

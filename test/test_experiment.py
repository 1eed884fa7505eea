# SPDX-License-Identifier: Apache-2.0
"""What a run takes over from the checkpoint that it starts from is said, not hidden."""

from dataclasses import asdict, replace
import json
import shutil

import numpy as np
import pytest
import torch
from training_data import IMAGE_SIZE, episode, tiny_tokenizer, with_chunks
from training_runs import TINY, tiny_config
import yaml

from worldvla_ros.config import load_yaml
from worldvla_ros.errors import ConfigError
from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.policy.settings import PolicySettings
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.failures import DatasetError
from worldvla_ros.training.run_folder import RunFolder
from worldvla_ros.training.settings import TrainConfig
from worldvla_ros.training.store_writing import write_store
from worldvla_ros.training.train import main, train
from worldvla_ros.training.trainer import Trainer


@pytest.fixture
def started_from_another(tmp_path):
    """Configuration of a run that starts from another one, and asks for more layers."""
    first = train(tiny_config(tmp_path, steps=1))
    config = tiny_config(tmp_path, steps=2, output='second')
    return replace(config, model=replace(TINY, num_layers=3, init_from=str(first)))


def narrow(folder, axis, to):
    """Make the action range of a checkpoint narrower on one axis."""
    entries = json.loads((folder / 'policy.json').read_text())
    entries['action_minimum'][axis], entries['action_maximum'][axis] = -to, to
    (folder / 'policy.json').write_text(json.dumps(entries))


def test_train_yaml_has_the_shape_and_the_range_that_were_used(started_from_another, tmp_path):
    final = train(started_from_another)
    checkpoint = RunFolder(started_from_another).latest()
    for folder in (final, checkpoint):
        used = load_yaml(folder / 'train.yaml', TrainConfig)
        assert (used.model.num_layers, used.data.action_range) == (2, 'checkpoint')
    longer = replace(started_from_another, run=replace(started_from_another.run, steps=3))
    assert train(longer) is not None, 'it resumes with the file that it began with'
    assert train(replace(used, run=replace(used.run, steps=4))) is not None, 'and with its own'


def test_a_run_whose_train_yaml_says_what_was_asked_for_is_resumed(started_from_another):
    """As those have that were written before."""
    train(started_from_another)
    folder = RunFolder(started_from_another)
    (folder.latest() / 'train.yaml').write_text(yaml.safe_dump(asdict(started_from_another)))
    assert folder.latest().name == 'step-00000002'


def test_the_world_stride_that_was_trained_is_that_of_the_checkpoint(tmp_path):
    """Also where training goes on from one that had another."""
    first = train(tiny_config(tmp_path, steps=1, world_stride=3, world_share=0.5))
    assert PolicySettings.load(first / 'policy.json').world_stride == 3
    second = tiny_config(tmp_path, steps=1, output='second', world_stride=2)
    final = train(replace(second, model=replace(TINY, init_from=str(first))))
    assert PolicySettings.load(final / 'policy.json').world_stride == 2


@pytest.mark.parametrize('data', [
    {}, {'world_stride': 5, 'branches': ('action',)}, {'world_stride': 5, 'branches': ('video',)}])
def test_the_world_stride_goes_on_where_none_is_given_or_no_world_is_learned(tmp_path, data):
    plain = build_experiment(tiny_config(tmp_path, **data))
    assert plain.pretrained.settings.world_stride == 1
    first = train(tiny_config(tmp_path, steps=1, world_stride=3))
    config = tiny_config(tmp_path, steps=1, output='second', **data)
    config = replace(config, model=replace(TINY, init_from=str(first)))
    experiment = build_experiment(config)
    assert experiment.pretrained.settings.world_stride == 3
    used = replace(config.data, world_stride=data.get('world_stride', 3))
    assert len(experiment.train) == len(build_experiment(replace(config, data=used)).train)
    train(config)
    assert train(replace(config, run=replace(config.run, steps=2))) is not None, 'it resumes'


def test_places_that_a_checkpoint_begins_to_read_follow_the_seed(tmp_path):
    """Pins a bug: they followed whatever the process had drawn before."""
    config = tiny_config(tmp_path, steps=1)
    config = replace(config, model=replace(TINY, init_from=str(train(config)), image_places=True))

    def places(seed):
        torch.rand(seed + 1)
        one = build_experiment(replace(config, run=replace(config.run, seed=seed)))
        return one.pretrained.model.model.embed_places.weight
    first = places(1)
    assert torch.equal(places(1), first) and not torch.equal(places(2), first)


def test_train_yaml_says_that_the_network_it_began_from_reads_places(tmp_path):
    """Pins a bug: it had what was asked for, which such a network does not follow."""
    first = tiny_config(tmp_path, steps=1)
    reads = train(replace(first, model=replace(TINY, image_places=True)))
    config = tiny_config(tmp_path, steps=1, output='second')
    config = replace(config, model=replace(TINY, init_from=str(reads)))
    used = load_yaml(train(config) / 'train.yaml', TrainConfig)
    assert used.model.image_places
    for again in (config, used):
        assert RunFolder(again).latest().name == 'step-00000001'
    plain = train(replace(first, run=replace(first.run, output=str(tmp_path / 'plain'))))
    third = replace(config, model=replace(TINY, init_from=str(plain)),
                    run=replace(config.run, output=str(tmp_path / 'third')))
    train(third)
    with pytest.raises(ConfigError, match=r'model\.image_places: False -> True'):
        train(replace(third, model=replace(third.model, image_places=True)))


def test_it_is_told_why_nothing_is_measured_on_what_is_held_out(tmp_path):
    config = tiny_config(tmp_path, label_tolerance=0.25, whole_chunks=True)
    assert 'nothing is measured' not in build_experiment(config).split_report
    episodes = [episode(number) for number in range(20)]
    for one in episodes[18:]:
        one.executed[:, :6] *= -1  # a learner's turns, no chunk of which holds to its end
    write_store(tmp_path / 'turns', episodes, tiny_tokenizer(), IMAGE_SIZE)
    experiment = build_experiment(replace(config, data=replace(
        config.data, store=str(tmp_path / 'turns'), branches=('action',))))
    assert experiment.held_out is None
    assert 'nothing is measured on the held-out episodes: ' in experiment.split_report


@pytest.mark.parametrize('world_share', [None, 0.25])
def test_a_branch_without_samples_is_refused(tmp_path, world_share):
    """Pins a bug: it was left out without a word, or a lower batch size was asked for."""
    with pytest.raises(DatasetError, match=r'branch action in 4 .* shorter than data\.horizon '
                                           r'\(13\); or take the branch out of data\.branches'):
        build_experiment(tiny_config(tmp_path, horizon=13, world_share=world_share))
    turns = [episode(number) for number in range(4)]
    for one in turns:
        one.executed[:, :6] *= -1
    write_store(tmp_path / 'turns', turns, tiny_tokenizer(), IMAGE_SIZE)
    config = tiny_config(tmp_path, label_tolerance=0.25, whole_chunks=True,
                         world_share=world_share)
    with pytest.raises(DatasetError, match=r'no chunk holds to its end; .* data\.whole_chunks'):
        build_experiment(replace(config, data=replace(config.data, store=str(tmp_path / 'turns'))))


@pytest.mark.parametrize('branches', [('action', 'world'), ('world', 'action')])
def test_held_out_episodes_that_lack_a_branch_are_measured_with_the_others(tmp_path, branches):
    """Pins a bug: with a world share nothing was measured, and nothing was said of it."""
    episodes = [episode(number, 12 if number < 18 else 4) for number in range(20)]
    write_store(tmp_path / 'store', episodes, tiny_tokenizer(), IMAGE_SIZE)
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    config = tiny_config(tmp_path, world_share=0.25, branches=branches)
    experiment = build_experiment(config)
    assert ('warning: not everything is measured on the held-out episodes: no sample of the '
            'branch action in 2 episodes') in experiment.split_report
    values = Trainer(experiment).evaluate()
    assert values['world'] > 0 and np.isnan(values['action']) and 'motion_error' not in values


def test_whole_chunks_need_to_know_what_holds(tmp_path):
    with pytest.raises(ConfigError, match=r'data\.whole_chunks needs data\.label_tolerance'):
        tiny_config(tmp_path, whole_chunks=True)


@pytest.mark.parametrize(('option', 'value', 'lacks'), [
    ('aim_weight', 0.5, 'aims'), ('reach_weight', 1.0, 'aims'),
    ('asked_repeats', 2, 'labels of chunks')])
def test_an_option_that_no_label_is_there_for_is_refused(tmp_path, option, value, lacks):
    """Pins a bug: it was accepted and did nothing, also where only held-out episodes have some."""
    def asked(**data):
        config = tiny_config(tmp_path, **data)
        if option == 'asked_repeats':
            return replace(config, data=replace(config.data, asked_repeats=value))
        return replace(config, loss=replace(config.loss, **{option: value}))
    config = asked()
    with pytest.raises(ConfigError, match=rf'{option} is given, .*store has {lacks}'):
        build_experiment(config)
    build_experiment(config, resume_from=train(tiny_config(tmp_path, steps=1)))
    for store, labelled in (('all', range(20)), ('held_out', range(18, 20))):
        write_store(tmp_path / store, [
            replace(with_chunks(episode(number)), aims=np.full((12, 5), 0.5))
            if number in labelled else episode(number) for number in range(20)],
            tiny_tokenizer(), IMAGE_SIZE)
    build_experiment(replace(config, data=replace(config.data, store=str(tmp_path / 'all'))))
    with pytest.raises(ConfigError, match=f'held_out has {lacks}'):
        build_experiment(replace(config, data=replace(config.data,
                                                      store=str(tmp_path / 'held_out'))))
    with pytest.raises(ConfigError, match=f'{option} is of the action branch'):
        build_experiment(asked(branches=('world',)))


def test_the_range_of_a_checkpoint_needs_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r'model\.init_from names none'):
        tiny_config(tmp_path, action_range='checkpoint')


@pytest.mark.parametrize('start', ['new', 'checkpoint'])
def test_a_demonstration_without_states_is_told_also_where_the_checkpoint_knows_their_range(
        tmp_path, start):
    config = tiny_config(tmp_path, steps=1, state=True)
    if start == 'checkpoint':
        config = replace(config, model=replace(TINY, init_from=str(train(config))),
                         run=replace(config.run, output=str(tmp_path / 'second')))
    shutil.rmtree(tmp_path / 'store')
    write_store(tmp_path / 'store', [episode(0), replace(episode(1), states=None)],
                tiny_tokenizer(), IMAGE_SIZE)
    with pytest.raises(DatasetError, match='12 of 24 frames have no state of the arm'):
        build_experiment(config)


def test_a_store_of_the_tokenizer_before_needs_a_checkpoint(tmp_path):
    with pytest.raises(ConfigError, match=r'model\.init_from, which names no checkpoint'):
        replace(tiny_config(tmp_path), model=replace(TINY, init_store='somewhere'))


def test_labels_that_saturate_are_counted_per_axis(started_from_another, tmp_path, capsys):
    assert not build_experiment(started_from_another).clipped_labels.any()
    narrow(tmp_path / 'run' / 'final', 3, 0.45)
    experiment = build_experiment(started_from_another)
    assert experiment.clipped_labels[3] > 0.1
    assert experiment.clipped_labels[[0, 1, 2, 4, 5, 6]].max() == 0
    assert experiment.range_report.startswith('warning:')
    file = tmp_path / 'second.yaml'
    file.write_text(yaml.safe_dump(asdict(started_from_another)))
    assert main(['--config', str(file)]) == 0
    line, = (line for line in capsys.readouterr().err.splitlines() if 'action labels' in line)
    assert f'dz 0.0%, droll {experiment.clipped_labels[3]:.1%}, dpitch 0.0%' in line


def test_chunks_and_states_out_of_the_range_of_a_checkpoint_are_told(tmp_path):
    """Pins a bug: labels of steps alone were looked at, so that it said 0.0 %."""
    first = train(tiny_config(tmp_path, steps=1, state=True))
    far = with_chunks(episode(0), steps=range(12))
    far.chunks[:, :, 3] = 5.0
    far.states[:3, 2] += 1.0
    write_store(tmp_path / 'far', [far, *(episode(number) for number in (1, 2, 3))],
                tiny_tokenizer(), IMAGE_SIZE)
    config = tiny_config(tmp_path, output='second', state=True)
    experiment = build_experiment(replace(
        config, model=replace(TINY, init_from=str(first)),
        data=replace(config.data, store=str(tmp_path / 'far'))))
    assert experiment.clipped_labels[3] == pytest.approx(60 / (48 + 60))
    report = experiment.range_report
    assert report.startswith('warning:') and 'droll 55.6%' in report
    assert report.endswith("warning: up to 6.2% of a value of the arm's state, too")


def test_few_labels_out_of_range_are_told_without_a_warning(tmp_path):
    experiment = build_experiment(tiny_config(tmp_path))
    few = replace(experiment, clipped_labels=experiment.clipped_labels + 0.004)
    assert few.range_report.startswith('action labels') and 'dx 0.4%' in few.range_report


def test_it_is_told_how_many_labels_are_learned(tmp_path):
    """Where a learner did something else, the later labels of a chunk are not."""
    config = tiny_config(tmp_path, label_tolerance=0.25)
    assert build_experiment(config).label_report == ''
    turns = [episode(number) for number in range(4)]
    for one in turns:
        one.executed[:, :6] *= -1
    write_store(tmp_path / 'turns', turns, tiny_tokenizer(), IMAGE_SIZE)
    learner = replace(config, data=replace(config.data, store=str(tmp_path / 'turns')))
    report = build_experiment(learner).label_report
    assert report.startswith('20.0% of the action labels') and 'data.label_tolerance' in report
    everything = replace(learner, data=replace(learner.data, label_tolerance=None))
    assert build_experiment(everything).label_report == ''

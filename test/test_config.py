# SPDX-License-Identifier: Apache-2.0
"""The strict loader: what it takes, what it refuses, and how well it says so."""

import array
from dataclasses import dataclass, field
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from worldvla_ros.config import (
    REQUIRED,
    bounded,
    check,
    describe,
    differences,
    flatten,
    from_mapping,
    load_yaml,
    unflatten,
)
from worldvla_ros.errors import ConfigError


@dataclass(frozen=True)
class Gains:
    proportional: float = bounded(1.0, unit='1/s', minimum=0.0, maximum=10.0, doc='P gain')
    wall: float = bounded(math.inf, unit='m', maximum=math.inf)


@dataclass(frozen=True)
class Settings:
    name: str = bounded(REQUIRED, doc='Any text')
    rate_hz: float = bounded(20.0, unit='Hz', minimum=1.0, maximum=200.0, read_only=True)
    steps: int = bounded(5, minimum=1, maximum=25)
    mode: str = bounded('sync', choices=('sync', 'async'))
    verbose: bool = False
    corner: tuple[float, float, float] = bounded((0.0, 0.0, 0.0), minimum=-1.0, maximum=1.0)
    cameras: tuple[str, ...] = ('agentview',)
    seed: int | None = field(default=None, metadata={'min': 0})
    gains: Gains = Gains(proportional=2.0)


def settings(**mapping):
    return from_mapping(Settings, {'name': 'arm', **mapping}, where='arm.yaml')


def test_defaults_fill_what_is_not_given():
    assert settings() == Settings('arm')


def test_a_partial_section_keeps_the_defaults_of_the_outer_dataclass():
    assert settings(gains={'wall': 0.3}).gains == Gains(proportional=2.0, wall=0.3)


def test_an_empty_section_means_its_defaults():
    assert settings(gains=None).gains == Gains(proportional=2.0)


@pytest.mark.parametrize('mapping, words', [
    ({'rate_h': 20.0}, ["unknown key 'rate_h'", "'rate_hz'"]),
    ({'gains': {'proportionnal': 1.0}}, ["'gains.proportionnal'", "'gains.proportional'"]),
    ({'qqqqqq': 1}, ["unknown key 'qqqqqq'", 'known keys', 'gains.wall']),
    ({'rate_hz': 500.0}, ['rate_hz', '500.0', '>= 1', '<= 200', '[Hz]']),
    ({'rate_hz': math.nan}, ['rate_hz', 'nan']),
    ({'rate_hz': 'fast'}, ['rate_hz', "'fast'", 'float']),
    ({'rate_hz': '1e2'}, ['write 100.0']),
    ({'rate_hz': True}, ['rate_hz', 'bool']),
    ({'steps': 2.0}, ['steps', 'int', '2.0']),
    ({'steps': True}, ['steps', 'bool']),
    ({'steps': 0}, ['steps', '>= 1']),
    ({'mode': 'lazy'}, ['mode', "'lazy'", "'sync', 'async'"]),
    ({'verbose': 1}, ['verbose', 'bool']),
    ({'corner': [0.0, 0.0]}, ['corner', '3 float']),
    ({'corner': [0.0, 0.0, 2.0]}, ['corner', '<= 1']),
    ({'corner': 'abc'}, ['corner', 'list']),
    ({'cameras': [1]}, ['cameras', 'str']),
    ({'seed': -1}, ['seed', '>= 0']),
    ({'gains': 3}, ['gains', 'section']),
    ({'gains': {'proportional': math.inf}}, ['gains.proportional', 'inf']),
    ({'gains': {'wall': 1.0}, 'gains.wall': 1.0}, ["'gains.wall'", 'twice']),
])
def test_a_bad_value_is_named_with_what_came_and_what_is_allowed(mapping, words):
    with pytest.raises(ConfigError) as caught:
        settings(**mapping)
    message = str(caught.value)
    assert message.startswith('arm.yaml: ')
    for word in words:
        assert word in message


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match="missing key 'name'"):
        from_mapping(Settings, {})


def test_an_unbounded_number_must_be_finite_unless_the_bound_is_infinite():
    @dataclass(frozen=True)
    class Free:
        value: float = 0.0

    assert settings(gains={'wall': math.inf}).gains.wall == math.inf
    with pytest.raises(ConfigError):
        from_mapping(Free, {'value': math.inf})


def test_integers_pass_as_floats_and_parameter_arrays_as_tuples():
    loaded = settings(rate_hz=10, corner=array.array('d', [0.1, 0.2, 0.3]), seed=3)
    assert loaded.rate_hz == 10.0 and isinstance(loaded.rate_hz, float)
    assert loaded.corner == (0.1, 0.2, 0.3)
    assert loaded.seed == 3


def test_describe_tells_all_that_a_parameter_declaration_needs():
    infos = {info.name: info for info in describe(Settings)}
    assert list(infos)[-2:] == ['gains.proportional', 'gains.wall']
    assert infos['name'].required and not infos['steps'].required
    rate = infos['rate_hz']
    assert (rate.type, rate.default, rate.unit) == (float, 20.0, 'Hz')
    assert (rate.minimum, rate.maximum, rate.read_only) == (1.0, 200.0, True)
    assert infos['mode'].choices == ('sync', 'async')
    assert infos['gains.proportional'].default == 2.0
    assert infos['gains.proportional'].doc == 'P gain'


@given(st.builds(
    Settings, name=st.text(), rate_hz=st.floats(1, 200), steps=st.integers(1, 25),
    mode=st.sampled_from(['sync', 'async']), verbose=st.booleans(),
    corner=st.tuples(*[st.floats(-1, 1)] * 3), cameras=st.lists(st.text()).map(tuple),
    seed=st.none() | st.integers(0, 9), gains=st.builds(Gains, st.floats(0, 10))))
def test_unflatten_is_the_inverse_of_flatten(instance):
    assert unflatten(Settings, flatten(instance)) == instance


def test_check_refuses_what_was_built_in_code():
    check(Settings('arm'))
    with pytest.raises(ConfigError, match=r'gains\.proportional'):
        check(Settings('arm', gains=Gains(proportional=-1.0)))


def test_a_check_across_fields_is_reported_with_its_place():
    @dataclass(frozen=True)
    class Span:
        start: float = 0.0
        stop: float = 1.0

        def __post_init__(self):
            if self.start > self.stop:
                raise ConfigError('start must not be above stop')

    with pytest.raises(ConfigError, match=r'span\.yaml: start must not be above stop'):
        from_mapping(Span, {'start': 2.0}, where='span.yaml')


def test_yaml_is_read_and_errors_name_the_file(tmp_path):
    path = tmp_path / 'arm.yaml'
    path.write_text('name: arm\ngains:\n  proportional: 3\n')
    assert load_yaml(path, Settings).gains.proportional == 3.0
    path.write_text('name: arm\nstep: 3\n')
    with pytest.raises(ConfigError, match=r"arm\.yaml: unknown key 'step'; did you mean 'steps'"):
        load_yaml(path, Settings)


@pytest.mark.parametrize('text, words', [
    ('name: a\nname: b\n', 'given twice'),
    ('gains:\n  wall: 1.0\n  wall: 2.0\nname: a\n', 'given twice'),
    ('- 1\n- 2\n', 'key: value'),
    ('name: [1\n', 'not valid YAML'),
    ('', "missing key 'name'"),
])
def test_a_broken_file_is_refused_with_its_name(tmp_path, text, words):
    path = tmp_path / 'arm.yaml'
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_yaml(path, Settings)
    assert 'arm.yaml' in str(caught.value)


def test_a_missing_file_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match='cannot be read'):
        load_yaml(tmp_path / 'none.yaml', Settings)


def test_a_type_that_cannot_be_configured_is_refused():
    @dataclass(frozen=True)
    class Odd:
        table: dict = field(default_factory=dict)

    with pytest.raises(ConfigError, match='cannot be of type'):
        from_mapping(Odd, {'table': {}})


def test_what_changed_in_the_settings_is_told_by_name():
    before, now = {'a': 1, 'b': (1, 2), 'old': True}, {'a': 2, 'b': (1, 2), 'new': 'x'}
    assert differences(before, now) == ['a: 1 -> 2', "new: None -> 'x'", 'old: True -> None']
    assert differences(before, now, ignore=('a', 'old')) == ["new: None -> 'x'"]
    assert differences(now, now) == []

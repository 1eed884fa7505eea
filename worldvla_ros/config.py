# SPDX-License-Identifier: Apache-2.0
"""Strict YAML -> frozen dataclasses: unknown key, missing key, wrong type or range = error.

A part keeps its configuration as a frozen dataclass beside its code and gives each value its
unit, range and meaning with `bounded`. The same dataclass then serves a YAML file (`load_yaml`),
a mapping (`from_mapping`) and ROS parameters (`describe`, `flatten`, `unflatten`), so that a
default or a range is written once. Values are bool, int, float, str, tuples of these, `X | None`
and nested dataclasses; nested names are joined by dots, as ROS parameters are.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import dataclasses
from dataclasses import dataclass
import difflib
from pathlib import Path
import sys
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from worldvla_ros.errors import ConfigError

REQUIRED = dataclasses.MISSING
"""Default of a field that has none: the key must be given."""

T = TypeVar('T')


def bounded(default: Any, *, unit: str = '', minimum: float | None = None,
            maximum: float | None = None, choices: tuple[Any, ...] | None = None,
            doc: str = '', read_only: bool = False) -> Any:
    """
    Make a dataclass field that knows its unit, its range and its meaning.

    A bound that is None allows any finite value; give an infinite bound to allow infinity. For a
    tuple, bounds and choices hold for each element. `read_only` marks what cannot change while
    the program runs. `REQUIRED` as default makes a key that must be given.
    """
    metadata = {'unit': unit, 'min': minimum, 'max': maximum, 'choices': choices, 'doc': doc,
                'read_only': read_only}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class FieldInfo:
    """One configuration value: all that is needed to declare it as a ROS parameter."""

    name: str  # dotted from the outermost dataclass: 'safety.max_translation'
    type: Any  # bool, int, float, str, tuple[float, ...], tuple[float, float, float], X | None
    default: Any  # REQUIRED where there is none
    unit: str
    minimum: float | None  # inclusive; None: any finite value
    maximum: float | None  # inclusive; None: any finite value
    choices: tuple[Any, ...] | None
    doc: str
    read_only: bool

    @property
    def required(self) -> bool:
        """Whether the key must be given."""
        return self.default is REQUIRED

    def convert(self, value: Any, where: str) -> Any:
        """Return the value in the field's type; ConfigError if the type or range is wrong."""
        try:
            converted = _convert(self.type, value)
        except TypeError:
            raise ConfigError(
                f'{where}: {self.name} must be {self.allowed()}, got {value!r} '
                f'({type(value).__name__}){_number_hint(self.type, value)}') from None
        for item in converted if isinstance(converted, tuple) else (converted,):
            if not self._allows(item):
                raise ConfigError(
                    f'{where}: {self.name} must be {self.allowed()}, got {converted!r}')
        return converted

    def allowed(self) -> str:
        """Say in words what the field takes: type, range or choices, and unit."""
        words = [_type_name(self.type)]
        if self.choices is not None:
            words.append('one of ' + ', '.join(repr(choice) for choice in self.choices))
        if self.minimum is not None:
            words.append(f'>= {self.minimum:g}')
        if self.maximum is not None:
            words.append(f'<= {self.maximum:g}')
        return ' '.join(words) + (f' [{self.unit}]' if self.unit else '')

    def _allows(self, item: Any) -> bool:
        if item is None:
            return True
        if self.choices is not None and item not in self.choices:
            return False
        if not isinstance(item, int | float):
            return True
        low = -sys.float_info.max if self.minimum is None else self.minimum
        high = sys.float_info.max if self.maximum is None else self.maximum
        return low <= item <= high  # False for NaN


def describe(cls: type) -> list[FieldInfo]:
    """List every value of a configuration dataclass, nested ones with dotted names."""
    return list(_walk(cls, '', REQUIRED))


def flatten(instance: Any) -> dict[str, Any]:
    """Turn a configuration into {dotted name: value}; the inverse of `unflatten`."""
    flat: dict[str, Any] = {}
    for info in describe(type(instance)):
        value = instance
        for part in info.name.split('.'):
            value = getattr(value, part)
        flat[info.name] = value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any],
                ignore: Collection[str] = ()) -> list[str]:
    """Say which settings changed, 'name: before -> now' each; a missing one counts as None.

    :param before: as `flatten` returns them, or any other settings by name; likewise `now`.
    :param ignore: names that may change.
    """
    return [f'{name}: {before.get(name)!r} -> {now.get(name)!r}' for name in {**now, **before}
            if name not in ignore and before.get(name) != now.get(name)]


def unflatten(cls: type[T], flat: Mapping[str, Any], *, where: str = 'parameters') -> T:
    """Build a configuration from {dotted name: value}; ConfigError names what is wrong."""
    infos = {info.name: info for info in describe(cls)}
    for name in flat:
        if name not in infos:
            raise ConfigError(f'{where}: unknown key {name!r}; {_hint(name, infos)}')
    values: dict[str, Any] = {}
    for name, info in infos.items():
        if name in flat:
            values[name] = info.convert(flat[name], where)
        elif info.required:
            raise ConfigError(f'{where}: missing key {name!r}; give it as {info.allowed()}')
        else:
            values[name] = info.default
    try:
        return _construct(cls, values, '')
    except ConfigError as error:  # a check across fields, in __post_init__
        raise ConfigError(f'{where}: {error}') from None


def from_mapping(cls: type[T], mapping: Mapping[str, Any], *, where: str = 'configuration') -> T:
    """Build a configuration from nested mappings; dotted keys are understood, too."""
    flat: dict[str, Any] = {}
    for name, value in _flat_items(mapping, '', _sections(cls, ''), where):
        if name in flat:
            raise ConfigError(f'{where}: {name!r} is given twice, nested and dotted; give it once')
        flat[name] = value
    return unflatten(cls, flat, where=where)


def load_yaml(path: str | Path, cls: type[T]) -> T:
    """Read a YAML file into a configuration; ConfigError names the file and the key."""
    return from_mapping(cls, read_yaml(path), where=str(path))


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """Read the mapping of a YAML file; ConfigError when it is none or gives a key twice."""
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding='utf-8'), _UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: cannot be read: {error}') from None
    except yaml.YAMLError as error:
        raise ConfigError(f'{path}: is not valid YAML: {error}') from None
    if content is None:
        content = {}
    if not isinstance(content, Mapping):
        raise ConfigError(
            f'{path}: must hold `key: value` lines, got a {type(content).__name__}')
    return content


def check(instance: Any) -> None:
    """
    Check the types and ranges of a configuration that was built in code.

    Call it in `__post_init__`; raises ConfigError as the loaders do.
    """
    flat = flatten(instance)
    for info in describe(type(instance)):
        info.convert(flat[info.name], type(instance).__name__)


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice; YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping after looking for repeated keys."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'key {key!r} is given twice', key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _walk(cls: type, prefix: str, base: Any) -> Iterator[FieldInfo]:
    """Yield the leaves of a dataclass; `base` is an instance whose values are the defaults."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = _default(field) if base is REQUIRED else getattr(base, field.name)
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _walk(hints[field.name], name + '.', default)
            continue
        meta = field.metadata
        yield FieldInfo(name, hints[field.name], default, meta.get('unit', ''), meta.get('min'),
                        meta.get('max'), meta.get('choices'), meta.get('doc', ''),
                        meta.get('read_only', False))


def _default(field: 'dataclasses.Field[Any]') -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _sections(cls: type, prefix: str) -> set[str]:
    """Dotted names of the nested dataclasses."""
    names: set[str] = set()
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            names.add(prefix + field.name)
            names |= _sections(hints[field.name], f'{prefix}{field.name}.')
    return names


def _flat_items(mapping: Mapping[str, Any], prefix: str, sections: set[str],
                where: str) -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        name = f'{prefix}{key}'
        if name not in sections:
            yield name, value
        elif value is None:  # `section:` with nothing below it
            continue
        elif isinstance(value, Mapping):
            yield from _flat_items(value, name + '.', sections, where)
        else:
            raise ConfigError(f'{where}: {name} must be a section with keys of its own, '
                              f'got {value!r} ({type(value).__name__})')


def _construct(cls: type[T], values: Mapping[str, Any], prefix: str) -> T:
    hints = get_type_hints(cls)
    arguments = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name, hint = prefix + field.name, hints[field.name]
        nested = dataclasses.is_dataclass(hint)
        arguments[field.name] = _construct(hint, values, name + '.') if nested else values[name]
    return cls(**arguments)


def _convert(hint: Any, value: Any) -> Any:
    """Return the value as the type says; TypeError if it is something else."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(_without_none(hint), value)
    if origin is tuple:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise TypeError
        items = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
        if len(items) != len(value):
            raise TypeError
        return tuple(_convert(item, element) for item, element in zip(items, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint not in (bool, int, float, str):
        raise ConfigError(f'a configuration field cannot be of type {hint!r}')
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError
    return value


def _without_none(hint: Any) -> Any:
    return next(option for option in get_args(hint) if option is not types.NoneType)


def _type_name(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return f'{_type_name(_without_none(hint))} or null'
    if origin is tuple:
        count = '' if arguments[1:] == (...,) else f'{len(arguments)} '
        return f'a list of {count}{_type_name(arguments[0])}'
    return str(hint.__name__)


def _number_hint(hint: Any, value: Any) -> str:
    """YAML 1.1 reads 1e-3 as text, which surprises everybody once."""
    if hint is not float or not isinstance(value, str):
        return ''
    try:
        return f'; YAML reads {value} as text, write {float(value)!r}' if float(value) else ''
    except ValueError:
        return ''


def nearest(name: str, known: Collection[str], likeness: float = 0.5) -> str | None:
    """Return which of the known names was probably meant; None if it resembles none of them.

    :param likeness: from which it does, (0, 1] (`difflib.SequenceMatcher.ratio`).
    """
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=likeness)), None)


def _hint(name: str, known: Mapping[str, Any]) -> str:
    close = nearest(name, known)
    return f'did you mean {close!r}?' if close else f'known keys: {", ".join(sorted(known))}'

"""Tables of TOML as dataclasses: each key has a type and a range, and what does not fit is named by its key.

    @dataclass(frozen=True)
    class Ghosts:
        points: Annotated[int, AtLeast(1)] = 200

    read(Ghosts, {"pionts": 100}, "game.ghosts")     # game.ghosts.pionts: no such key; did you mean 'points'?

A key without a default must be there.  Kinds of values: bool, int, float (a whole number serves), str, Path, Literal,
`Numbers`, lists, dicts, dataclasses, unions of dataclasses that differ in the Literal of their key `type` (a text alone
is the table of that type), and `| None` for a key that may be left out.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

# The key that says which of several dataclasses a table is.
_TYPE = "type"

# Longer values are cut in messages.
_LONGEST = 60


class ConfigurationError(ValueError):
    """What is wrong with a configuration; the message begins with the key."""


@dataclass(frozen=True)
class AtLeast:
    """The number (each of a list or table of numbers) is at least this."""

    bound: float

    def check(self, number: float) -> str | None:
        """What the number must be, where it is not."""
        return None if number >= self.bound else f"must be at least {self.bound:g}"


@dataclass(frozen=True)
class Above:
    """The number (each of a list or table of numbers) is larger than this."""

    bound: float

    def check(self, number: float) -> str | None:
        """What the number must be, where it is not."""
        if number > self.bound:
            return None
        return "must be positive" if self.bound == 0 else f"must be larger than {self.bound:g}"


Count: TypeAlias = Annotated[int, AtLeast(1)]
Natural: TypeAlias = Annotated[int, AtLeast(0)]
Positive: TypeAlias = Annotated[float, Above(0)]
NotNegative: TypeAlias = Annotated[float, AtLeast(0)]


class Numbers:
    """A number, or an array of them: lists of one length in each other."""


@contextmanager
def section(key: str) -> Iterator[None]:
    """Errors of the block that a user can mend are ConfigurationErrors of this key."""
    try:
        yield
    except ConfigurationError:
        raise
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise ConfigurationError(f"{key}: {error}") from error


def closest(name: str, valid: Iterable[str]) -> str:
    """What to try instead of a name: the nearest valid one, or all of them."""
    names = sorted(valid)
    lower = {n.lower(): n for n in names}
    near = get_close_matches(name, names, 1, 0.6) or get_close_matches(name.lower(), lower, 1, 0.6)
    if near:
        return f"did you mean '{lower.get(near[0], near[0])}'?"
    return f"there {'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}"


def read(kind: type[T], table: Any, key: str = "") -> T:
    """A dataclass from a table.

    Raises:
        ConfigurationError: a key that there is not, or one that is missing, or a value that does not fit.
    """
    if not isinstance(table, Mapping):
        raise ConfigurationError(f"{key or 'the configuration'}: must be a table, not {_short(table)}")
    hints = get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in table:
        if name not in fields:
            raise ConfigurationError(f"{join(key, name)}: no such key; {closest(name, fields)}")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = value_of(hints[name], table[name], join(key, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigurationError(f"{join(key, name)}: is missing; {_kind_of(hints[name])} belongs here")
    try:
        return kind(**values)
    except ConfigurationError as error:  # of __post_init__, which knows its keys by their own names
        raise ConfigurationError(join(key, str(error))) from None


def join(key: str, name: str) -> str:
    """A key below another one."""
    return f"{key}.{name}" if key else name


def plain(value: Any) -> Any:
    """What TOML can hold of a dataclass: the table that reads as the same one, with all defaults written out."""
    if dataclasses.is_dataclass(value):
        entries = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        first = {_TYPE: entries[_TYPE]} if _TYPE in entries else {}
        return first | {name: entry for name, entry in entries.items() if entry is not None and entry != {}}
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


# -- values ----------------------------------------------------------------------------------------------------


def value_of(kind: Any, value: Any, key: str) -> Any:
    """A value of a kind.

    Raises:
        ConfigurationError: it is of another kind.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        found = value_of(inner[0], value, key)
        for check in inner[1:]:
            for number in _flat(found):
                wrong = None if number is None else check.check(number)
                if wrong:
                    raise ConfigurationError(f"{key}: {wrong}, not {_short(value)}")
        return found
    if origin in (Union, types.UnionType):
        return _one_of([k for k in inner if k is not type(None)], value, key)
    if origin is Literal:
        if isinstance(value, str) and value in inner:
            return value
        hint = closest(value, inner) if isinstance(value, str) else f"there are {', '.join(inner)}"
        raise ConfigurationError(f"{key}: {_short(value)} is not among its values; {hint}")
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigurationError(f"{key}: must be a table, not {_short(value)}")
        return {name: value_of(inner[1], entry, join(key, name)) for name, entry in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise ConfigurationError(f"{key}: must be a list, not {_short(value)}")
        return [value_of(inner[0], entry, f"{key}[{i}]") for i, entry in enumerate(value)]
    if dataclasses.is_dataclass(kind):
        return read(kind, value, key)  # type: ignore[arg-type]
    if not _fits(kind, value):
        raise ConfigurationError(f"{key}: must be {_kind_of(kind)}, not {_short(value)}")
    return kind(value) if kind in (float, Path) else value


def _one_of(kinds: list[Any], value: Any, key: str) -> Any:
    """A value of one of several kinds: of dataclasses the one of its `type`, otherwise the first that fits."""
    if not all(dataclasses.is_dataclass(k) for k in kinds):
        for kind in kinds:
            with suppress(ConfigurationError):
                return value_of(kind, value, key)
        # Of a list or table its entries tell more.
        last: Any = {list: list, dict: Mapping}.get(get_origin(_bare(kinds[-1])), ())
        if len(kinds) > 1 and not isinstance(value, last):
            words = dict.fromkeys(map(_kind_of, kinds))
            raise ConfigurationError(f"{key}: must be {' or '.join(words)}, not {_short(value)}")
        return value_of(kinds[-1], value, key)
    if len(kinds) == 1:
        return read(kinds[0], value, key)
    by_name = {name: k for k in kinds for name in get_args(get_type_hints(k)[_TYPE])}
    if isinstance(value, str):
        value = {_TYPE: value}
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{key}: must be a table, not {_short(value)}")
    chosen = value.get(_TYPE)
    if chosen is None:
        raise ConfigurationError(f"{join(key, _TYPE)}: is missing; there are {', '.join(by_name)}")
    if not isinstance(chosen, str) or chosen not in by_name:
        raise ConfigurationError(f"{join(key, _TYPE)}: there is no {_short(chosen)}; {closest(str(chosen), by_name)}")
    return read(by_name[chosen], value, key)


def _fits(kind: Any, value: Any) -> bool:
    if kind is Numbers:
        return _is_array(value)
    if kind is float:
        return _is_number(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str) and value != "" if kind in (str, Path) else isinstance(value, kind)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_array(value: Any) -> bool:
    if not isinstance(value, list):
        return _is_number(value)
    shapes = {_shape(entry) for entry in value}
    return len(shapes) == 1 and all(_is_array(entry) for entry in value)


def _shape(value: Any) -> tuple[int, ...]:
    return (len(value), *_shape(value[0])) if isinstance(value, list) and value else ()


def _flat(value: Any) -> list[Any]:
    entries = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return [value] if entries is None else [x for entry in entries for x in _flat(entry)]


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _kind_of(kind: Any) -> str:
    """A kind in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _kind_of(inner[0])
    if origin in (Union, types.UnionType):
        kinds = dict.fromkeys(_kind_of(k) for k in inner if k is not type(None))
        return " or ".join(kinds)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is list:
        return "a list"
    if origin is dict or dataclasses.is_dataclass(kind):
        return "a table"
    words = {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}
    words |= {Path: "the name of a file", Numbers: "a finite number, or an array of them"}
    return words[kind]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"

"""The keys of an experiment's TOML file, read off the dataclasses of its schema.  No Sphinx here."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hyco_fem.experiment.schema import Experiment
from hyco_fem.experiment.tables import Numbers


@dataclass(frozen=True)
class Key:
    """A key: its name, what it takes, and its default in TOML; None where it must be there."""

    name: str
    kind: str
    default: str | None


@dataclass(frozen=True)
class Table:
    """A table of the file: "game.ghosts", the `type` that it is for, what its class says of it, and its keys."""

    name: str
    type: str
    text: str
    keys: list[Key]


def tables(kind: type = Experiment, name: str = "") -> Iterator[Table]:
    """The tables of a dataclass, itself first, in the order of its fields."""
    hints = get_type_hints(kind, include_extras=True)
    keys, inner = [], []
    chosen = ""
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        below = f"{name}.{field.name}" if name else field.name
        classes, many = _classes(hint)
        if classes:
            inner += [(c, f"{below}.NAME" if many == "dict" else below) for c in classes]
        if field.name == "type" and get_origin(hint) is Literal:
            chosen = ", ".join(get_args(hint))
        elif not classes or many == "list":
            keys.append(Key(field.name, describe(hint), _default(field)))
    yield Table(name, chosen, inspect.cleandoc(kind.__doc__ or ""), keys)
    for c, below in inner:
        yield from tables(c, below)


def _classes(hint: Any) -> tuple[list[Any], str]:
    """The dataclasses that a key holds, and whether in a "dict" or "list"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _classes(inner[0])
    if origin in (dict, list):
        return _classes(inner[-1])[0], origin.__name__
    if origin in (Union, types.UnionType):
        parts = [_classes(k) for k in inner if k is not type(None)]
        return [c for found, _ in parts for c in found], next((many for _, many in parts if many), "")
    return ([hint], "") if dataclasses.is_dataclass(hint) else ([], "")


def describe(hint: Any) -> str:
    """A kind of value in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [_range(check) for check in inner[1:]]
        return ", ".join([describe(inner[0]), *filter(None, ranges)])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(k) for k in inner if k is not type(None)))
    if origin is Literal:
        return ", ".join(f'``"{value}"``' for value in inner)
    if origin is list:
        return f"list of {_many(inner[0])}"
    if origin is dict:
        return f"table of {_many(inner[1])}"
    if dataclasses.is_dataclass(hint):
        return "table"
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything", Path: "file"}
    return (words | {Numbers: "number or array"}).get(hint, getattr(hint, "__name__", str(hint)))


def _many(hint: Any) -> str:
    words = {"number": "numbers", "whole number": "whole numbers", "text": "texts", "table": "tables"}
    words |= {"anything": "values", "number or array": "numbers or arrays"}
    kind, comma, limits = describe(hint).partition(",")
    return f"{words.get(kind, kind)}{comma}{limits}"


def _range(check: Any) -> str:
    bound = getattr(check, "bound", None)
    if bound is None:
        return ""
    return f"> {bound:g}" if type(check).__name__ == "Above" else f"≥ {bound:g}"


def _default(field: Any) -> str | None:
    if field.default is not dataclasses.MISSING:
        return toml(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return toml(field.default_factory())
    return None


def toml(value: Any) -> str:
    """A default as TOML writes it; empty where the key is left out."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, (str, Path)) else f"{value:g}" if isinstance(value, float) else str(value)

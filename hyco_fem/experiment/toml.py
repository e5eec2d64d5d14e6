"""TOML: what the standard library only reads, written; and overrides such as game.rounds=50."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hyco_fem.experiment.tables import ConfigurationError

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def load(path: Path) -> dict[str, Any]:
    """The table of a file.

    Raises:
        ConfigurationError: it cannot be read, or is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: the experiment cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not a text file in UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path}: not TOML: {error}") from None


def overridden(table: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of a table with `a.b=value` put in; the value is one of TOML, or a text without quotes.

    Raises:
        ConfigurationError: a setting is not of this form, or leads through what is no table.
    """
    result = _copy(table)
    for setting in settings:
        name, equals, text = setting.partition("=")
        keys = _keys(name.strip())
        if not equals or keys is None:
            raise ConfigurationError(f"--set {setting}: must be KEY=VALUE, such as game.rounds=50")
        place = result
        for depth, key in enumerate(keys[:-1], 1):
            place = place.setdefault(key, {})
            if not isinstance(place, dict):
                raise ConfigurationError(f"--set {setting}: {'.'.join(keys[:depth])} is not a table")
        place[keys[-1]] = _parsed(text.strip())
    return result


def _keys(name: str) -> list[str] | None:
    """The parts of a dotted key, "a.'b.c'.d" too."""
    try:
        table: Any = tomllib.loads(f"{name} = 0")
    except tomllib.TOMLDecodeError:
        return None
    keys = []
    while isinstance(table, dict) and len(table) == 1:
        ((key, table),) = table.items()
        keys.append(key)
    return keys if table == 0 and "\n" not in name else None


def _parsed(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(entry) for key, entry in value.items()}
    return [_copy(entry) for entry in value] if isinstance(value, list) else value


def dump(table: Mapping[str, Any]) -> str:
    """TOML text of a table; `tomllib.loads` gives the table back."""
    lines: list[str] = []
    _dump(table, [], lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _dump(table: Mapping[str, Any], path: list[str], lines: list[str]) -> None:
    tables = {key: value for key, value in table.items() if _is_section(value)}
    lines += [f"{_key(key)} = {_literal(value)}" for key, value in table.items() if key not in tables]
    for key, value in tables.items():
        below = [*path, _key(key)]
        brackets = ("[[", "]]") if isinstance(value, list) else ("[", "]")
        for entry in value if isinstance(value, list) else [value]:
            if brackets[0] == "[[" or not entry or not all(map(_is_section, entry.values())):
                lines += ["", f"{brackets[0]}{'.'.join(below)}{brackets[1]}"]
            _dump(entry, below, lines)


def _is_section(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(entry, Mapping) for entry in value)
    )


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for surrogate pairs, which are not needed, and for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)

"""What tells a run from others whose parameters have the same shapes: what its models, PDEs and data are made of.

Nothing in it changes from round to round, or with the number of ranks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

# What torch itself keeps in every module.
_OF_TORCH = frozenset(vars(nn.Module()))

# UFL may write the same form in another way in its next version.
_FORM = re.compile(r", form [0-9a-f]+ of UFL (\S+)")


def identity(game: Any) -> dict[str, str]:
    """For each module of a game, and each attribute that has a method `identity`, what it is, in words.

    Replicated; not collective.
    """
    found: dict[str, str] = {}
    seen: set[int] = set()
    for name, value in vars(game).items():
        if id(value) in seen:  # under two names
            continue
        seen.add(id(value))
        if isinstance(value, nn.Module):
            found |= {path: _makings(module) for path, module in value.named_modules(prefix=name)}
        elif callable(getattr(value, "identity", None)):
            found[name] = value.identity()
    return found


def comparable(theirs: Mapping[str, str], own: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Two identities without the forms of which one is written by another UFL than the other."""
    a, b = dict(theirs), dict(own)
    for key in a.keys() & b.keys():
        x, y = _FORM.search(a[key]), _FORM.search(b[key])
        if x and y and x[1] != y[1]:
            a[key], b[key] = _FORM.sub("", a[key]), _FORM.sub("", b[key])
    return a, b


def _makings(module: nn.Module) -> str:
    """Class, settings, and which functions a module uses."""
    kind = type(module)
    words = [
        f"{name}={text}"
        for name, value in vars(module).items()
        if name not in _OF_TORCH and (text := _text(value, kind.__module__.split(".")[0] == "hyco_fem"))
    ]
    own = f"{kind.__name__}({', '.join(words)})"
    # Not those of torch, which has no such method.
    return f"{own} {module.identity()}" if callable(getattr(module, "identity", None)) else own


def _text(value: Any, ours: bool) -> str | None:
    """A setting in words, or None: whole numbers may count what a rank has, and floats of a user may move."""
    if isinstance(value, (bool, str)):
        return repr(value)
    if isinstance(value, float) and ours:
        return f"{value:.6g}"  # rounding may depend on the number of ranks
    if isinstance(value, type) or not callable(value) or isinstance(value, nn.Module):
        return None
    return getattr(value, "__name__", None)

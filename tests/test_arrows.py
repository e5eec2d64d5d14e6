"""Imports point down the rooms of the package: what solves knows no networks, and the bridge knows no game."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hyco_fem"
ROOMS = {
    "pde": {"pde"},
    "bridge": {"pde", "bridge"},
    "models": {"pde", "bridge", "models"},
    "game": {"pde", "bridge", "models", "game"},
    "io": {"pde", "bridge", "models", "game", "io"},
    "experiment": {"pde", "bridge", "models", "game", "accuracy", "io", "experiment"},
    "accuracy": {"pde", "bridge", "models", "accuracy"},
    "ritz": {"pde", "bridge", "models", "game", "ritz"},
}
# Modules outside the rooms that import torch.
WITH_TORCH = {"parallel", "tensors", "files", "script", "verify"}


def imported(file: Path) -> set[str]:
    """Modules that a file imports at run time, "hyco_fem.pde.linear"."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"hyco_fem.{alias.name}" for alias in node.names} if module == "hyco_fem" else {module}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir()}
    for file in (PACKAGE / room).glob("*.py"):
        used = {m.split(".")[1] for m in imported(file) if m.startswith("hyco_fem.")}
        assert used & rooms <= ROOMS[room], file


def test_what_solves_does_not_import_torch() -> None:
    for file in [*(PACKAGE / "pde").glob("*.py"), PACKAGE / "agreement.py"]:
        modules = imported(file)
        assert not {m for m in modules if m.split(".")[0] == "torch"}, file
        assert not {m.split(".")[1] for m in modules if m.startswith("hyco_fem.")} & WITH_TORCH, file

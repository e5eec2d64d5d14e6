"""What a cell prints, put together as it was: it arrives in pieces, and myst-nb would end each with a line break."""

from __future__ import annotations

from typing import Any

from myst_nb.core import render
from sphinx.application import Sphinx


def joined(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell with all pieces of stdout as one, and all of stderr."""
    out: list[Any] = []
    streams: dict[str, Any] = {}
    for output in outputs:
        if output["output_type"] == "stream" and output["name"] in streams:
            streams[output["name"]]["text"] += output["text"]
            continue
        if output["output_type"] == "stream":
            streams[output["name"]] = output
        out.append(output)
    return out


def setup(app: Sphinx) -> dict[str, bool]:
    """Put `joined` in the place of myst-nb's own, which `nb_merge_streams` asks for."""
    assert hasattr(render, "coalesce_streams")
    render.coalesce_streams = joined
    return {"parallel_read_safe": True, "parallel_write_safe": True}

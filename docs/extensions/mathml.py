"""Equations as MathML, which browsers show by themselves: no script, and nothing from the network."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

# What latex2mathml leaves to the renderer: spaces about bars, slashes and signs, ∂ as a symbol, the semicolon.
_POLISH = (
    (r"<mo>(&#x02202;)</mo>", r"<mi>\1</mi>"),
    (r"<mo>(&#x0002F;)</mo>", r'<mo lspace="0" rspace="0">\1</mo>'),
    (r'<mo stretchy="false">(&#x0007C;)</mo>', r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>'),
    (r"(<mo[^>]*>&#x000(?:3D|28|2C);</mo>)<mo>(&#x02212;)</mo>", r'\1<mo form="prefix">\2</mo>'),
    (r"<mi>;</mi>", r'<mo separator="true">;</mo>'),
)


def _mathml(latex: str, display: str) -> str:
    text = convert(latex, display=display)
    for pattern, better in _POLISH:
        text = re.sub(pattern, better, text)
    return text


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _display(self: Any, node: nodes.math_block) -> None:
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    ids = f' id="{node["ids"][0]}"' if node.get("ids") else ""
    formula = f'<div class="formula">{_mathml(node.astext(), "block")}</div>'
    self.body.append(f'<div class="equation"{ids}>{formula}{number}</div>\n')
    raise nodes.SkipNode


def _font(app: Sphinx, config: Any) -> None:
    """STIX Two Math, of the package ziamath, as a static file: fraction bars and brackets come from a font."""
    spec = find_spec("ziamath")
    if spec is not None and spec.origin is not None:
        config.html_static_path = [*config.html_static_path, str(Path(spec.origin).parent / "fonts")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer "mathml"."""
    app.connect("config-inited", _font)
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

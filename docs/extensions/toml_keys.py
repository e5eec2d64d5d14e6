"""`toml-keys`: the keys of an experiment's TOML file as tables, made from the schema at build time."""

from __future__ import annotations

from docutils import nodes
from keys import Key, Table, tables
from names import _inline
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class TomlKeys(SphinxDirective):
    """One heading a table of the file, and a table of its keys."""

    def run(self) -> list[nodes.Node]:
        text: list[str] = []
        for table in tables():
            text += _table(table)
        return self.parse_text_to_nodes("\n".join(text), allow_section_headings=True)


def _table(table: Table) -> list[str]:
    title = f"[{table.name}]" if table.name else "At the top"
    if table.type:
        title += f" type = {table.type}"
    text = [title, "-" * len(title), "", *(_inline(line) for line in table.text.splitlines()), ""]
    if not table.keys:
        return text
    text += [".. list-table::", "   :class: keys", "   :header-rows: 1", "   :widths: 25 50 25", ""]
    text += ["   * - key", "     - value", "     - default"]
    return [*text, *(line for key in table.keys for line in _row(key)), ""]


def _row(key: Key) -> list[str]:
    default = "must be given" if key.default is None else f"``{key.default}``" if key.default else "left out"
    return [f"   * - ``{key.name}``", f"     - {key.kind}", f"     - {default}"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("toml-keys", TomlKeys)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

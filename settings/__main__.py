"""Writes .env.example, and the tables in docs/settings.md, from the table of settings."""

import ast
import inspect
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

from settings.setting import Setting
from settings.table import ROWS, Table

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / ".env.example"
DOCUMENT = ROOT / "docs" / "settings.md"

_INTRODUCTION = """\
# Copy this file to .env and fill in the first two lines; everything else is optional.
# Commented lines show the defaults; where nothing follows the =, the comment above describes it.
# Environment variables override .env. Each secret can also be read from a file: NAME_FILE=/path.
"""
_TABLE = "| name | default | meaning |\n|---|---|---|\n"


def example() -> str:
    """Return .env.example."""
    lines, sign = [_INTRODUCTION], "#"
    for row in ROWS:
        if row.heading:
            lines.append(f"\n# --- {row.heading} ---\n\n")
            sign = "" if row.heading == "Required" else "#"
        default = f" Default: {_default(row)}" if sign else ""
        text = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", _meaning(row) + default)  # links
        lines += [f"# {re.sub(r'[`]|[*]{2}', '', text)}\n", f"{sign}{row.name}={row.text}\n"]
    return "".join(lines)


def document(text: str) -> str:
    """Return docs/settings.md: `text` with the first table below each heading replaced."""
    tables: dict[str, str] = {}
    heading = ""
    for row in ROWS:
        heading = row.heading or heading
        line = f"| `{row.name}` | {_default(row)} | {_meaning(row)} |\n"
        tables[heading] = tables.get(heading, _TABLE) + line
    for heading, table in tables.items():
        found = re.search(rf"(?m)^## {heading}\n(?:(?!\||## ).*\n)*((?:\|.*\n)+)", text)
        assert found, f"docs/settings.md has no table below '## {heading}'"
        text = text[: found.start(1)] + table + text[found.end(1) :]
    return text


def _default(row: Setting) -> str:
    literal = f"`{row.text}`" if row.text else ""
    return f"{literal} ({row.shown})" if literal and row.shown else literal or row.shown or "none"


def _meaning(row: Setting) -> str:
    secret = "Secret. " if row.is_secret else ""
    extra = f" Needs `requirements-{row.extra}.txt`." if row.extra else ""
    return f"{secret}{_help()[row.field]}{extra}"


@cache
def _help() -> dict[str, str]:
    """Return the text below each field of the table."""
    (table,) = ast.parse(inspect.getsource(Table)).body
    assert isinstance(table, ast.ClassDef)
    texts = {}
    for pair in pairwise(table.body):
        match pair:
            case (ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(ast.Constant(str(text)))):
                texts[field] = " ".join(text.split())
    return texts


if __name__ == "__main__":
    EXAMPLE.write_text(example(), "utf-8")
    DOCUMENT.write_text(document(DOCUMENT.read_text("utf-8")), "utf-8")

"""Put the catalogue's tables into the pages of docs/: `python scripts/docs_tables.py`.

A table stands between `<!-- catalogue: FAMILY -->` and `<!-- end -->`. `tests/test_methods_catalogue.py`
makes them anew and compares.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from kdistill.config.method import Family
from kdistill.config.methods import of_family
from kdistill.explaining import choice, settings

DOCS = Path(__file__).resolve().parent.parent / "docs"
TABLE = re.compile(r"(?<=<!-- catalogue: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


#: what stands before the name of a setting
PREFIX = re.compile(r"^(loss|mixing)\.(features\.\w+\.)?")


def table(family: Family) -> str:
    """The options of a family: name, what it is and when to use it, what it needs, its settings."""
    lines = ["| option | what, and when | needs | defaults |", "| --- | --- | --- | --- |"]
    for method in of_family(family):
        defaults = [
            f"`{PREFIX.sub('', setting.key)}={setting.value}`"
            for setting in settings(choice(method.kind))
            if not setting.key.endswith(".layers")
            and (method.kind != "features" or ".features." not in setting.key)
        ]
        cells = [f"`{method.kind}`", method.line, "; ".join(method.needs), " ".join(defaults)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def refreshed(text: str) -> str:
    """A page with its tables as the catalogue and the configs have them now."""
    return TABLE.sub(lambda found: f"{found[1]}{found[2]}{table(cast(Family, found[1]))}", text)


if __name__ == "__main__":
    for page in sorted(DOCS.glob("*.md")):
        page.write_text(refreshed(page.read_text()))

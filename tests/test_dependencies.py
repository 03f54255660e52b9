"""The list of licences names every dependency."""

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_dependency_has_its_licence_listed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[<>=!~\[; ]", line)[0] for line in wanted}
    rows = [line.split("|")[1] for line in (ROOT / "docs" / "DEPENDENCIES.md").read_text().splitlines() if "|" in line]
    listed = {name for row in rows for name in re.findall(r"[\w-]+", row)}
    assert names - listed == set()

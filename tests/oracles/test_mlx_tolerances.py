"""The published table of tolerances: every family that is compared, within the bound of the tests."""

from __future__ import annotations

import re
from pathlib import Path

from edgekit_mlx import TOLERANCE
from edgekit_mlx.families import COMPARED

TABLE = Path(__file__).parents[2] / "docs" / "how-to" / "mlx-tolerances.txt"


def test_the_table_has_every_family_within_the_bound():
    rows = [line.strip("| \n").split(" | ") for line in TABLE.read_text("utf-8").splitlines()[2:]]
    figures = {row[0].strip("`"): [float(each) for each in row[2:]] for row in rows}
    assert figures.keys() == {*COMPARED, "the sample model"}
    for family, (plain, quantized, _, exact) in figures.items():
        assert max(plain, quantized, exact) < TOLERANCE, family
    assert all(re.fullmatch(r"\d+", row[1]) and int(row[1]) for row in rows)

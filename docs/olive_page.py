"""The page on Olive's passes: what each takes and needs, and whether the tests run it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "plugins/olive/src"))

from edgekit_olive.catalogue import Entry, entries

HEAD = """# Olive's passes

The {count} passes of olive-ai 0.13.0 as passes of edgekit:
`edgekit apply olive:NAME MODEL --to DIRECTORY -o OPTION=VALUE`. [How to run them](../how-to/run-olive.md) says what
happens. `edgekit olive-passes` says which can run on this machine, and `edgekit olive-passes NAME` explains the
options.

`tests/oracles/test_olive_passes.py` runs {run} of them, each with a numerical check: the bound is on the root mean
square of the outputs' difference, relative to the outputs. `test_olive_adapters.py` fine-tunes with {tuned} more, whose
results must lower the loss, and merges and extracts adapters. What was not run there says why, or what it needs.

| pass | takes | run by the tests | needs besides olive-ai |
|---|---|---|---|
"""
OPTIONS = """
## Options

Besides Olive's own, listed here, every pass has `calibration` (an `.npz` file, a text, or from Python any samples),
`context`, `samples`, `accelerator`, `provider`, `least_cosine`, and on Hugging Face directories `adapter`, a directory
of peft's.
"""


def page() -> str:
    """The page."""
    tested = runpy.run_path(str(ROOT / "tests/oracles/olive_passes.py"))
    rows = [_row(entry, tested) for entry in entries().values()]
    head = HEAD.format(count=len(rows), run=len(tested["CASES"]), tuned=len(tested["TUNED"]))
    return head + "\n".join(rows) + "\n" + OPTIONS + "\n".join(map(_options, entries().values()))


def _row(entry: Entry, tested: dict) -> str:
    run = tested["LEFT"].get(entry.name, "no")
    if entry.name in tested["TUNED"]:
        run = "yes, it lowers the loss"
    if entry.name in tested["ADAPTERS"]:
        run = "yes, to 1e-05"
    if entry.name in tested["CASES"]:
        bound = tested["CASES"][entry.name].error
        run = "yes" if bound is None else f"yes, to {bound:g}"
    summary = f": {entry.summary.replace('|', '/')}" if entry.summary else ""
    return f"| `{entry.name}`{summary} | {', '.join(entry.takes)} | {run} | {entry.conditions} |"


def _options(entry: Entry) -> str:
    lines = [f"\n### {entry.name}\n"]
    for option in entry.options.values():
        default = "required" if option.required else f"default `{json.dumps(option.default)}`"
        lines.append(f"- `{option.name}`: {option.kind}; {default}")
    return "\n".join(lines if len(lines) > 1 else [*lines, "No options."])

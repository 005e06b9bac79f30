"""The comparison with other servers, from `peers.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path

#: ``bases`` and ``sources`` by short name, and ``features``: of each a cell [what, source, line] for every server.
TABLE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def comparison(features: Collection[str]) -> str:
    """The table, in the order of `features`; raises where a row is of no feature, or a source or a cell is missing."""
    rows = TABLE["features"]
    unknown = rows.keys() - set(features)
    if unknown:
        raise LookupError(f"{sorted(unknown)} is no feature; change docs/peers.toml with docs/features.py")
    servers = list(next(iter(rows.values())))
    head = f"| feature | edgekit | {' | '.join(servers)} |"
    shown = (f"| {name} | yes | {_cells(servers, rows[name])} |" for name in features if name in rows)
    return "\n".join([head, "|---" * (len(servers) + 2) + "|", *shown])


def _cells(servers: list[str], row: dict[str, tuple[str, str, int]]) -> str:
    return " | ".join(f"[{what}]({_url(source)}#L{line})" for what, source, line in map(row.__getitem__, servers))


def _url(source: str) -> str:
    base, path = TABLE["sources"][source]
    # A page in Markdown shows its lines only as plain text.
    plain = "?plain=1" if path.endswith((".md", ".mdx")) else ""
    return f"{TABLE['bases'][base]}/{path}{plain}"


__all__ = ["TABLE", "comparison"]

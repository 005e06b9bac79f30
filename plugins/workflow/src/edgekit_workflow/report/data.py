"""What a report shows, from the records of a run: one view for the page, the Markdown and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import InvalidFileError
from edgekit_workflow.optimize.choice import Measured, measured
from edgekit_workflow.optimize.records import HEAD, RESULT, read_json

#: Tensors in the heat map: those of most divergence.
TENSORS = 48
Cells = dict[tuple[str, str], tuple[float, int]]


class Run:
    """A finished run, as its records tell.

    Args:
        path: its directory.

    Attributes:
        path: its directory.
        head: ``run.json``.
        result: ``result.json``.
        made: the artifacts by ascending size, with what was measured of them.
        numbers: of each artifact on the charts, by name.
        chosen: the artifact that was chosen, or else that of least divergence.

    Raises:
        MissingFileError: it is no run's directory, or the run has not finished.
        InvalidFileError: its records are damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head = read_json(path / HEAD)
        self.result = read_json(path / RESULT)
        try:
            self.made: list[Measured] = sorted(measured(self.result), key=lambda m: (m.record["nbytes"], m.name))
            self.noise = float(self.result["baseline"]["noise_floor"])
            named = {m.name: m for m in self.made}
            least = min(self.made, key=lambda m: m.kl, default=None)
            self.chosen: Measured | None = named.get(self.result["chosen"], least)
            self.front: list[Measured] = [named[name] for name in self.result["front"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidFileError(
                f"{path / RESULT}: not the result of edgekit optimize ({error!r:.100}); run it again"
            ) from error
        self.numbers = {m.name: number for number, m in enumerate(self.made, 1)}

    @property
    def not_gated(self) -> Mapping[str, str]:
        """Why artifacts were not passed through the gates, by name; empty in runs of versions that did not tell."""
        told: Mapping[str, str] = self.result.get("not_gated", {})
        return told

    @property
    def source(self) -> Mapping[str, Any]:
        """The record of the source."""
        baseline: Mapping[str, Any] = self.result["baseline"]
        return baseline

    def label(self, each: Measured) -> str:
        """The number and the name of an artifact."""
        return f"{self.numbers[each.name]} {each.name}"

    def points(self) -> list[dict[str, Any]]:
        """The points of the chart of size against quality."""
        ahead = {m.name for m in self.front}
        return [
            {
                "number": self.numbers[m.name],
                "format": m.record["format"],
                "nbytes": m.record["nbytes"],
                "kl": max(m.kl, 1e-12),
                "error": m.record["quality"]["kl_error"],
                "front": m.name in ahead,
            }
            for m in self.made
        ]

    def tensor_costs(self) -> tuple[str, Cells]:
        """What each tensor costs, and its bytes: by precision where a fit measured it, else by artifact on the front.

        Returns:
            The measure in words, and by tensor and column the value and the bytes; of many tensors only those of most.
        """
        for each in ([self.chosen] if self.chosen else []) + self.made:
            values = each.record["sensitivities"]
            if values:
                cells = {(_short(v["tensor"]), _short(v["precision"])): (v["kl"], v["nbytes"]) for v in values}
                return "KL divergence with this tensor alone quantized, nats", _most(cells)
        cells = {}
        for m in self.front[:6]:
            for tensor, error in m.record["errors"].items():
                if error:
                    column = str(self.numbers[m.name])
                    cells[_short(tensor), column] = (error, m.record["precisions"][tensor]["nbytes"])
        return "relative error of the weights, by artifact", _most(cells)

    def categories(self) -> dict[str, dict[str, tuple[float, float]]]:
        """By artifact on the front and category of text: KL divergence and its standard error."""
        return {
            self.label(m): {
                name: (max(c["kl"], self.noise, 1e-12), c["kl_error"])
                for name, c in m.record["quality"]["categories"].items()
            }
            for m in self.front[:8]
        }

    def latencies(self) -> dict[str, tuple[tuple[float, float, float], list[float]]]:
        """By artifact: p50, p95 and p99 in seconds, and every token's, where the run recorded them."""
        return {
            self.label(m): ((latency["p50"], latency["p95"], latency["p99"]), m.speed.get("latencies", []))
            for m in self.made
            if (latency := m.speed.get("latency")) and latency["p50"]
        }

    def precisions(self) -> dict[str, tuple[str, float]]:
        """By tensor of the chosen artifact its precision and its bits a weight."""
        if self.chosen is None:
            return {}
        return {
            name: (_short(each["precision"]), round(8 * each["nbytes"] / each["size"], 2))
            for name, each in self.chosen.record["precisions"].items()
            if each["size"] >= 4096 or "norm" not in name
        }

    def gates(self) -> list[tuple[Measured, Mapping[str, Any]]]:
        """Every gate of every artifact that was judged."""
        return [(m, gate) for m in self.made for gate in m.gates.get("gates", ())]

    def fallbacks(self) -> list[tuple[Measured, str, str]]:
        """Artifact, tensor and reason of each tensor that could not have its precision."""
        return [(m, tensor, why) for m in self.made for tensor, why in m.record["fallbacks"].items()]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the source's files and of every artifact's, by path."""
        files = {f"source: {name}": digest for name, digest in self.head["source"]["files"].items()}
        for m in self.made:
            files |= m.record["sha256"]
        return files


def _most(cells: Cells) -> Cells:
    """Return the cells of the tensors with the largest values, in their order."""
    largest: dict[str, float] = {}
    for (tensor, _), (value, _) in cells.items():
        largest[tensor] = max(largest.get(tensor, 0.0), value)
    kept = set(sorted(largest, key=lambda tensor: -largest[tensor])[:TENSORS])
    return {key: value for key, value in cells.items() if key[0] in kept}


def _short(name: str) -> str:
    """Return a tensor's or a precision's name without the parts that all have."""
    return name.rpartition(":")[2].replace(".weight", "").replace("blk.", "")


__all__ = ["TENSORS", "Cells", "Run"]

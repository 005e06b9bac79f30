"""What a served model wrote, as distributions: read from the server's metrics, its log, or an earlier record.

    metrics   text of ``/metrics``: histograms, whose values are the upper bounds of their buckets
    log       ``edgekit serve --log-format json``: a line for each request, with a record of each text
    record    JSON that `Record.to_json` wrote: a baseline

Source of the metrics' form: prometheus.io, "Exposition formats" (text format 0.0.4).
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, ResourceError, UsageError
from edgekit.files.foreign import read_limited, strict_json
from edgekit.typing import F64
from edgekit_workflow.serving import ANSWER_LIMIT, asked, samples

#: The measures that are compared, and what they are.
MEASURES = {
    "tokens": "tokens of a text",
    "confidence": "geometric mean of the probabilities of a text's tokens",
    "refused": "1 for a text that begins with a refusal, else 0",
}
#: The metric of each measure; refusals are two counters.
HISTOGRAMS = {"tokens": "edgekit_text_tokens", "confidence": "edgekit_text_confidence"}
#: Largest size of a log, a record or a file of a metrics page, in bytes.
LOG_LIMIT = 1 << 30
_KIND = "edgekit record of served texts, version 1"
_CURE = "give the URL of /metrics, a file of it, a log in JSON, or a record"


@attrs.frozen(eq=False)
class Distribution:
    """How often each value came.

    Attributes:
        values: float64 [n], increasing; of a histogram the upper bounds of its buckets, the last may be infinite.
        counts: float64 [n], at least 0.
        bucketed: whether the values are bounds.
    """

    values: F64
    counts: F64
    bucketed: bool = False

    @classmethod
    def of(cls, values: Iterable[float], last: int | None = None) -> Distribution:
        """Return the distribution of single values, or of the last of them only."""
        given = list(values)
        counted = sorted(Counter(given[-last:] if last else given).items())
        return cls(np.array([v for v, _ in counted], np.float64), np.array([n for _, n in counted], np.float64))

    @property
    def total(self) -> int:
        """The number of texts."""
        return int(self.counts.sum())

    def into(self, bounds: F64) -> Distribution:
        """Return the same values in buckets.

        Args:
            bounds: float64 [n], increasing upper bounds, each part of its bucket; larger values are in the last.
        """
        places = np.minimum(np.searchsorted(bounds, self.values), len(bounds) - 1)
        return Distribution(bounds, np.bincount(places, self.counts, len(bounds)).astype(np.float64), True)

    def since(self, earlier: Distribution) -> Distribution:
        """Return what was added to a server's histogram after an earlier record of it.

        A count that is smaller than before means that the server started again: everything is new then.
        """
        if not np.array_equal(self.values, earlier.values) or np.any(self.counts < earlier.counts):
            return self
        return attrs.evolve(self, counts=self.counts - earlier.counts)


@attrs.frozen(eq=False)
class Record:
    """The distributions of the texts of each model of a server.

    Attributes:
        models: by model, by measure (`MEASURES`).
        cumulative: whether they count everything since the server's start, as metrics do.
    """

    models: Mapping[str, Mapping[str, Distribution]]
    cumulative: bool = False

    def since(self, earlier: Record) -> Record:
        """Return what came after an earlier record of the same server's metrics.

        Raises:
            UsageError: one of the two was not made from metrics.
        """
        if not (self.cumulative and earlier.cumulative):
            raise UsageError("only records of metrics can be subtracted; of a log take the last texts: --last")
        return Record(
            {
                name: {m: d.since(earlier.models[name][m]) if m in earlier.models.get(name, {}) else d
                       for m, d in measures.items()}
                for name, measures in self.models.items()
            }
        )  # fmt: skip

    def to_json(self) -> str:
        """Return the record as deterministic JSON; it contains no text, no time and no host."""
        models = {
            name: {
                measure: {
                    "values": [value if math.isfinite(value) else None for value in d.values.tolist()],
                    "counts": d.counts.tolist(),
                    "bucketed": d.bucketed,
                }
                for measure, d in measures.items()
            }
            for name, measures in self.models.items()
        }
        record = {"kind": _KIND, "cumulative": self.cumulative, "models": models}
        return json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n"


def read_record(source: str | os.PathLike[str], *, key: str | None = None, last: int | None = None) -> Record:
    """Read what a served model wrote.

    Args:
        source: URL of a server's ``/metrics``, a file of that page, a log in JSON, or a record.
        key: the server's API key, for a URL.
        last: of a log, only so many texts of each model, the latest.

    Raises:
        MissingFileError: the file cannot be read.
        ResourceError: the server does not answer.
        UsageError: `last` with another source than a log, or no text is recorded.
        InvalidFileError: the content is none of these.
    """
    name = os.fspath(source)
    content = _fetched(name, key) if name.startswith(("http://", "https://")) else _read(name)
    text = content.decode("utf-8", "replace")
    first = text.lstrip()[:1]
    whole = first == "{" and _KIND in text[:200]
    if last is not None and (last < 1 or whole or first != "{"):
        raise UsageError(f"--last {last} with {name}; give 1 or more, with a log in JSON")
    record = of_record(text, name) if whole else of_log(text, name, last) if first == "{" else of_metrics(text, name)
    if not any(d.total for measures in record.models.values() for d in measures.values()):
        raise UsageError(f"{name}: no text is recorded; ask the server for texts first")
    return record


def _read(name: str) -> bytes:
    return read_limited(Path(name), LOG_LIMIT, _CURE, "this is no log of a server")


def _fetched(url: str, key: str | None) -> bytes:
    try:
        status, content = asked(url, key)
    except (OSError, ValueError) as error:
        raise ResourceError(f"{url}: no server answers ({error}); is it running, and at this address?") from error
    if not 200 <= status < 300:
        raise ResourceError(f"{url}: the server answers {status}; see `edgekit diagnose --url`")
    if len(content) > ANSWER_LIMIT:
        raise InvalidFileError(f"{url}: longer than {ANSWER_LIMIT:,} bytes; {_CURE}")
    return content


def of_metrics(text: str, where: str) -> Record:
    """Return the record of a metrics page.

    Raises:
        InvalidFileError: it is not in Prometheus's text format, or has no metrics of served texts.
    """
    try:
        given = samples(text)
    except (ValueError, KeyError, IndexError) as error:
        raise InvalidFileError(f"{where}: not Prometheus's text format ({error!s:.80}); {_CURE}") from error
    found: dict[str, dict[str, Distribution]] = {}
    for measure, metric in HISTOGRAMS.items():
        buckets: dict[str, list[tuple[float, float]]] = {}
        for sample in given:
            if sample.name == f"{metric}_bucket":
                bound = float(sample.labels.get("le", "nan"))
                buckets.setdefault(sample.labels.get("model", ""), []).append((bound, sample.value))
        for model, pairs in buckets.items():
            bounds, sums = np.array(sorted(pairs), np.float64).T
            found.setdefault(model, {})[measure] = Distribution(bounds, np.diff(sums, prepend=0.0), True)
    refusals = {s.labels.get("model", ""): s.value for s in given if s.name == "edgekit_refusals_total"}
    for model, refused in refusals.items():
        texts = sum(s.value for s in given if s.name == "edgekit_texts_total" and s.labels.get("model") == model)
        found.setdefault(model, {})["refused"] = Distribution(
            np.array([0.0, 1.0]), np.array([texts - refused, refused]), True
        )
    if not found:
        raise InvalidFileError(f"{where}: no metrics of served texts (edgekit_text_tokens); {_CURE}")
    return Record(found, cumulative=True)


def of_log(text: str, where: str, last: int | None = None) -> Record:
    """Return the record of a log in JSON: lines that are no JSON, and events without texts, are passed over.

    Raises:
        InvalidFileError: no line has a record of texts.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("texts"), list):
            measures = found.setdefault(str(event.get("model")), {name: [] for name in MEASURES})
            for outcome in event["texts"]:
                for name, value in _measured(outcome):
                    measures[name].append(value)
    if not found:
        raise InvalidFileError(f"{where}: no line records texts; serve with --log-format json")
    return Record(
        {
            model: {name: Distribution.of(values, last) for name, values in measures.items() if values}
            for model, measures in found.items()
        }
    )


def _measured(outcome: Any) -> Iterable[tuple[str, float]]:
    if not isinstance(outcome, dict):
        return
    for name in MEASURES:
        value = outcome.get(name)
        if isinstance(value, bool | int | float) and math.isfinite(value):
            yield name, float(value)


def of_record(text: str, where: str) -> Record:
    """Return a record that `Record.to_json` wrote.

    Raises:
        InvalidFileError: it is malformed.
    """
    data = strict_json(text.encode(), Path(where), "the record")
    try:
        models = {
            str(model): {name: _distribution(measures[name]) for name in MEASURES if name in measures}
            for model, measures in data["models"].items()
        }
        return Record(models, bool(data["cumulative"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidFileError(f"{where}: a malformed record ({error!s:.80}); record it again") from error


def _distribution(data: Mapping[str, Any]) -> Distribution:
    values = np.array([math.inf if value is None else value for value in data["values"]], np.float64)
    counts = np.array(data["counts"], np.float64)
    if values.shape != counts.shape or np.any(np.diff(values) <= 0) or np.any(counts < 0) or np.isnan(values).any():
        raise ValueError("values must increase, with a count of at least 0 each")
    return Distribution(values, counts, bool(data["bucketed"]))


__all__ = [
    "HISTOGRAMS",
    "LOG_LIMIT",
    "MEASURES",
    "Distribution",
    "Record",
    "of_log",
    "of_metrics",
    "of_record",
    "read_record",
]

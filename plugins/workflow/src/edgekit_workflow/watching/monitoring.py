"""Files for Prometheus and Grafana: alert rules, drift of a baseline as rules, a scrape configuration, a dashboard.

The population stability index is written out in PromQL, over the bins of a baseline that was recorded from metrics:
Prometheus then computes it of the last hour. Kolmogorov-Smirnov's test is `edgekit watch`'s alone.

Sources: prometheus.io, "Alerting rules", "Recording rules" and "Configuration"; grafana.com, "Dashboard JSON model".
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError
from edgekit.files.atomic import write_atomic
from edgekit_workflow.watching.drift import FLOOR, Limits, cuts
from edgekit_workflow.watching.records import HISTOGRAMS, Distribution, Record

TARGET = "127.0.0.1:8000"
#: Time over which the drift of what was served is computed.
WINDOW = "1h"
_TARGET = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}|\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}")


def write_monitoring(
    to: str | os.PathLike[str],
    *,
    target: str = TARGET,
    baseline: Record | None = None,
    limits: Limits | None = None,
) -> tuple[Path, ...]:
    """Write the files for Prometheus and Grafana, and return their paths.

    Args:
        to: a directory; files of these names are replaced.
        target: host and port of the server.
        baseline: recorded from metrics; None leaves the rules on drift out.
        limits: of drift; None takes the defaults.

    Raises:
        UsageError: a malformed target, or a baseline that was not recorded from metrics.
    """
    if not _TARGET.fullmatch(target):
        raise UsageError(f"target {target!r:.80}; write a host and a port, such as {TARGET}")
    contents = {
        "alerts.yml": _data("alerts.yml"),
        "dashboard.json": json.dumps(dashboard(), indent=1) + "\n",
    }
    if baseline is not None:
        contents["drift.yml"] = json.dumps(drift_rules(baseline, limits or Limits()), indent=1) + "\n"
    rules = [name for name in contents if name.endswith(".yml")]
    contents["prometheus.yml"] = json.dumps(configuration(target, rules), indent=1) + "\n"
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        write_atomic(folder / name, text.encode())
    return tuple(folder / name for name in sorted(contents))


def configuration(target: str, rules: Sequence[str]) -> dict[str, object]:
    """Return a configuration of Prometheus that asks one server, and loads rules from files beside it."""
    job = {"job_name": "edgekit", "metrics_path": "/metrics", "static_configs": [{"targets": [target]}]}
    return {"global": {"scrape_interval": "15s"}, "rule_files": list(rules), "scrape_configs": [job]}


def drift_rules(baseline: Record, limits: Limits) -> dict[str, object]:
    """Return rules that compute the population stability index of the last hour, and alert where it is large.

    Raises:
        UsageError: the baseline was not recorded from metrics.
    """
    if not any(d.bucketed for measures in baseline.models.values() for d in measures.values()):
        raise UsageError(
            "the baseline was not recorded from metrics, whose buckets the rules need; record one: "
            "edgekit watch http://HOST:PORT/metrics --record FILE"
        )
    recorded = [
        {"record": "edgekit:drift_psi", "labels": {"measure": measure}, "expr": expression}
        for model, measures in baseline.models.items()
        for measure, distribution in measures.items()
        if distribution.total
        for expression in [_index(model, measure, distribution, limits.least)]
    ]
    alert = {
        "alert": "EdgekitDrift",
        "expr": f"edgekit:drift_psi >= {limits.psi:g}",
        "for": "30m",
        "labels": {"severity": "warning"},
        "annotations": {
            "summary": "{{ $labels.model }}: the {{ $labels.measure }} of texts differ from the baseline "
            "(stability index {{ $value | humanize }})",
            "cure": "edgekit watch tells whether chance explains it; then look at what is asked, and at the artifact: "
            "edgekit gate",
        },
    }
    return {"groups": [{"name": "edgekit-drift", "rules": [*recorded, alert]}]}


def _index(model: str, measure: str, old: Distribution, least: int) -> str:
    """The index in PromQL, of models with at least so many texts."""
    terms = []
    for share, came in _bins(model, measure, old):
        p, q = f"clamp_min(({came}) / {_texts(model, measure)}, {FLOOR:g})", f"{max(share, FLOOR):.6g}"
        terms.append(f"({p} - {q}) * ln({p} / {q})")
    return " + ".join(terms) + f" and {_texts(model, measure)} >= {least}"


def _bins(model: str, measure: str, old: Distribution) -> Iterator[tuple[float, str]]:
    """The share of each bin in the baseline, and PromQL for the number of new texts in it."""
    if measure == "refused":
        refused = _increase("edgekit_refusals_total", model)
        yield old.counts[1] / old.total, refused
        yield old.counts[0] / old.total, f"{_texts(model, measure)} - {refused}"
        return
    bounds = cuts(old)
    below = ""
    for bound, count in zip(bounds, old.into(bounds).counts, strict=True):
        within = _increase(f"{HISTOGRAMS[measure]}_bucket", model, f',le="{_bound(bound)}"')
        yield count / old.total, f"{within} - {below}" if below else within
        below = within


def _bound(value: float) -> str:
    """A bound as the server's client library and Prometheus write it."""
    return "+Inf" if math.isinf(value) else str(float(value))


def _texts(model: str, measure: str) -> str:
    return _increase("edgekit_texts_total" if measure == "refused" else f"{HISTOGRAMS[measure]}_count", model)


def _increase(metric: str, model: str, label: str = "") -> str:
    return f"sum by (model) (increase({metric}{{model={json.dumps(model)}{label}}}[{WINDOW}]))"


def panels() -> list[dict[str, Any]]:
    """Return the panels of ``panels.toml``: ``title``, ``unit``, and ``targets``, expressions by their legends."""
    found: list[dict[str, Any]] = tomllib.loads(_data("panels.toml"))["panels"]
    return found


def _data(name: str) -> str:
    return resources.files("edgekit_workflow.watching").joinpath(name).read_text("utf-8")


def dashboard() -> dict[str, object]:
    """Return the dashboard; Grafana asks for the data source, and lists the models."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    drawn = [
        {
            "id": number + 1,
            "type": "timeseries",
            "title": panel["title"],
            "datasource": source,
            "gridPos": {"h": 8, "w": 12, "x": 12 * (number % 2), "y": 8 * (number // 2)},
            "fieldConfig": {"defaults": {"unit": panel["unit"], "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + place), "datasource": source, "expr": expression, "legendFormat": legend}
                for place, (legend, expression) in enumerate(panel["targets"].items())
            ],
        }
        for number, panel in enumerate(panels())
    ]
    variables = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "model",
            "type": "query",
            "label": "Model",
            "datasource": source,
            "query": "label_values(edgekit_texts_total, model)",
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
        },
    ]
    return {
        "uid": "edgekit-serve",
        "title": "edgekit serve",
        "tags": ["edgekit"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "1m",
        "templating": {"list": variables},
        "panels": drawn,
    }


__all__ = ["TARGET", "WINDOW", "configuration", "dashboard", "drift_rules", "panels", "write_monitoring"]

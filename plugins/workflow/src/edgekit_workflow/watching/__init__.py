"""Watches a served model: drift against a recorded baseline, and rules and a dashboard for Prometheus and Grafana."""

from __future__ import annotations

from edgekit_workflow.watching.drift import Drift as Drift
from edgekit_workflow.watching.drift import Limits as Limits
from edgekit_workflow.watching.drift import compare as compare
from edgekit_workflow.watching.records import Distribution as Distribution
from edgekit_workflow.watching.records import Record as Record
from edgekit_workflow.watching.records import read_record as read_record

__all__ = ["Distribution", "Drift", "Limits", "Record", "compare", "read_record"]

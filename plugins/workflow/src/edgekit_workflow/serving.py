"""What a running server answers: its routes, and the samples of its metrics."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

#: Seconds to wait for an answer.
PATIENCE = 10.0
#: Largest size of an answer in bytes.
ANSWER_LIMIT = 16 << 20


def asked(url: str, key: str | None) -> tuple[int, bytes]:
    """Ask a server for a page.

    Args:
        url: of the page, http or https.
        key: the server's API key.

    Returns:
        Status and body of the answer, of the body at most one byte more than `ANSWER_LIMIT`.

    Raises:
        OSError: no server answers.
        ValueError: not such a URL.
    """
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read(ANSWER_LIMIT + 1)
    except urllib.error.HTTPError as error:
        return error.code, error.read(ANSWER_LIMIT + 1)


def samples(page: str) -> list[Sample]:
    """Return the samples of a metrics page, in its order.

    Raises:
        ValueError, KeyError, IndexError: it is not in Prometheus's text format.
    """
    from prometheus_client.parser import text_string_to_metric_families

    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


__all__ = ["ANSWER_LIMIT", "PATIENCE", "asked", "samples"]

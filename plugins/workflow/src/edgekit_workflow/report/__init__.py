"""The report of a run of `edgekit optimize`: a page, Markdown, JSON, and a model card.

from pathlib import Path
from edgekit_workflow.report import report

print(report(Path("run"))["page"])
"""

from __future__ import annotations

from pathlib import Path

from edgekit.errors import UsageError
from edgekit.files.atomic import write_atomic, writing
from edgekit_workflow.optimize.records import dumped
from edgekit_workflow.report.data import Run
from edgekit_workflow.report.documents import as_json, as_markdown, model_card
from edgekit_workflow.report.page import render

#: The files of a report, by what they are. The first marks a directory as a report's, so that a later one replaces it.
FILES = {"json": "report.json", "markdown": "report.md", "card": "README.md", "page": "index.html"}


def report(run: Path, to: Path | None = None) -> dict[str, Path]:
    """Write the report of a run.

    Args:
        run: the directory of a finished run.
        to: the directory to write; None for ``report`` in the run's.

    Returns:
        The written files by `FILES`' names: ``json``, ``markdown``, ``card`` (a README.md for the Hugging Face Hub)
        and ``page``. The same records give the same bytes, with the same matplotlib.

    Raises:
        MissingFileError: it is no run's directory, or the run has not finished.
        InvalidFileError: its records are damaged.
        UsageError: the directory holds files that no report wrote.
        ResourceError, LockedError: about the target.
    """
    view = Run(run)
    target = run / "report" if to is None else to
    with writing(target):
        if target.is_dir() and any(target.iterdir()) and not (target / FILES["json"]).exists():
            raise UsageError(f"{target}: it holds files that no report wrote; choose another directory with --to")
        target.mkdir(parents=True, exist_ok=True)
    content = {
        "json": dumped(as_json(view)),
        "markdown": as_markdown(view).encode(),
        "card": model_card(view).encode(),
        "page": render(view).encode(),
    }
    for name, data in content.items():
        write_atomic(target / FILES[name], data)
    return {name: target / file for name, file in FILES.items()}


__all__ = ["FILES", "report"]

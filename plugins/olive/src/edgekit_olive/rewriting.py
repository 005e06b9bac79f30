"""Runs a tool of ONNX Runtime's on a graph with its weights inside, and writes the result with what it changed."""

from __future__ import annotations

import contextlib
import io
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, UnsupportedModelError
from edgekit.files.atomic import AtomicDirectory, writing
from edgekit.files.memory import refuse_shortage
from edgekit_olive import computing
from edgekit_olive.library import last_line, onnx, onnxruntime
from edgekit_olive.reading import LIMIT, parse
from edgekit_olive.results import carry, copy_graph, graphs, make_manifest, open_result, refuse_unlike, sizes
from edgekit_olive.writer import MODEL, OWNED, graph_file


def rewritten(
    source: Artifact,
    to: Path,
    recipe: str,
    change: Callable[[Path, Path], None],
    least_cosine: float,
    *,
    prepare: Callable[[Any], Any] = lambda proto: proto,
    unchanged: str = "",
) -> Artifact:
    """Write the directory of a changed graph, with the difference of its outputs and its operators in the manifest.

    Args:
        source: an ONNX model.
        to: the directory to write.
        recipe: the pass and its options, for the manifest.
        change: writes the graph at its second argument from that at its first, whose weights are inside.
        least_cosine: a result whose outputs have a lower cosine with the source's is refused; -1 for none.
        prepare: changes an `onnx.ModelProto` with its weights before; by default nothing.
        unchanged: why an unchanged graph is an error; empty if it is none.

    Raises:
        UnsupportedModelError: the graph is larger than a protobuf, `change` fails, or it changes no operator.
        NonFiniteError: the result computes values that are not finite.
        QualityGateError: the cosine is below `least_cosine`.
        ResourceError: the target cannot be written; it is left as it was.
    """
    graph = graph_file(source.path)
    directory = AtomicDirectory(to, owned=OWNED)
    try:
        with writing(to):
            work = directory.path / "work"
            work.mkdir()
            library = onnx()
            library.save_model(prepare(_loaded(graph)), str(work / "before.onnx"))
            _run(change, work / "before.onnx", work / MODEL, graph)
            told = _compared(work / "before.onnx", work / MODEL, graph)
            refuse_unlike(told.get("measured", {}), least_cosine, recipe.partition(" ")[0])
            copy_graph(work / MODEL, directory.path, MODEL)
            carry(source, directory.path)
            shutil.rmtree(work)
            quality = {
                **told.get("measured", {}),
                **graphs("onnx", source, directory.path),
                **sizes(source, directory.path),
            }
        if unchanged and quality["operators"] == quality["operators_before"]:
            raise UnsupportedModelError(f"{graph}: {unchanged}")
        notes = {"uncompared": told["uncompared"]} if "uncompared" in told else {}
        directory.write("edgekit.manifest.json", make_manifest(source, recipe, quality, notes).to_json().encode())
        directory.commit()
    finally:
        directory.close(keep=False)
    return open_result(to, "onnx")


def _compared(before: Path, after: Path, source: Path) -> dict[str, Any]:
    """Return `computing.compared` of two graphs; raises `UnsupportedModelError` if one does not run."""
    try:
        return computing.compared(*(computing.Model("onnx", graph, None) for graph in (before, after)))
    except EdgekitError:
        raise
    except Exception as error:  # onnxruntime's own classes derive from Exception or RuntimeError
        refuse_shortage(error, f"{source}: computing it")
        raise UnsupportedModelError(f"{source}: the changed graph does not run ({last_line(error)})") from error


def _loaded(graph: Path) -> Any:
    """Return a graph with its weights inside, as the tools take it."""
    parsed = parse(graph)
    total = graph.stat().st_size + sum(file.stat().st_size for file in parsed.files)
    if total > LIMIT:
        raise UnsupportedModelError(
            f"{graph}: {total:,} bytes; the tools take graphs of up to {LIMIT:,}; quantize the weights alone, with a "
            "recipe"
        )
    return onnx().load(str(graph))


def _run(change: Callable[[Path, Path], None], graph: Path, result: Path, source: Path) -> None:
    onnxruntime()
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # the tools advise through the root logger
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            change(graph, result)
    except Exception as error:  # the tools raise anything
        refuse_shortage(error, f"{source}: changing it")
        raise UnsupportedModelError(f"{source}: ONNX Runtime's tools fail on it ({last_line(error)})") from error
    finally:
        logging.disable(before)


__all__ = ["rewritten"]

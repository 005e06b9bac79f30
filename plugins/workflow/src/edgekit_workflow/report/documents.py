"""The report as Markdown, as JSON, and as a model card for the Hugging Face Hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from edgekit.cli.output import size
from edgekit.errors import counted
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.report.data import Run

#: Of the content of ``report.json``.
SCHEMA = 1


_TOLD = ("front", "chosen", "reasons", "refused", "left_out", "settings", "command")


def as_json(run: Run) -> dict[str, Any]:
    """Return what the report says, as plain data: ``artifacts`` with all figures, ``front``, ``chosen``, ``hashes``."""
    return {
        "schema": SCHEMA,
        "source": run.source,
        "texts": run.head["texts"],
        "versions": run.head["versions"],
        "artifacts": [
            {**m.record, "number": run.numbers[m.name], "speed": m.speed or None, "gates": m.gates or None}
            for m in run.made
        ],
        **{key: run.result[key] for key in _TOLD},
        "not_gated": run.not_gated,
        "hashes": run.hashes(),
    }


def as_markdown(run: Run) -> str:
    """Return the report as Markdown."""
    return "\n".join(_markdown(run)) + "\n"


def _markdown(run: Run) -> Iterator[str]:
    yield f"# {run.source['path']}, optimized\n"
    yield from _recommendation(run)
    yield "\n## Artifacts\n"
    yield from artifact_table(run)
    yield f"\nNoise floor of the KL divergence: {run.noise:.1e} nats.\n"
    if run.gates():
        yield "## Gates\n"
        passed = sum(g["passed"] is True for _, g in run.gates())
        yield f"{passed} of {len(run.gates())} passed.\n"
        yield from (f"- {m.name}: failed: {GateResult(**g).line}" for m, g in run.gates() if g["passed"] is False)
        unable = Counter(GateResult(**g).line for _, g in run.gates() if g["passed"] is None)
        yield from (f"- not run for {counted(count, 'artifact')}: {line}" for line, count in unable.items())
    if run.result["left_out"]:
        yield "\n## Left out\n"
        yield from (f"- {name}: {why}" for name, why in run.result["left_out"].items())
    if run.not_gated:
        yield "\n## Not gated\n"
        yield from (f"- {name}: {why}" for name, why in run.not_gated.items())
    yield "\n## Make it again\n"
    yield f"```console\n$ {run.result['command']}\n```\n"
    yield from _rows(("file", "SHA-256"), [(f"`{name}`", f"`{digest}`") for name, digest in run.hashes().items()])


def _recommendation(run: Run) -> Iterator[str]:
    if run.result["chosen"] is None:
        yield "No artifact meets every requirement:\n"
        yield from (f"- {name}: {why}" for name, why in run.result["refused"].items())
    else:
        yield f"**{run.result['chosen']}**\n"
        yield from (f"- {reason}" for reason in run.result["reasons"])


def artifact_table(run: Run) -> Iterator[str]:
    """Yield the lines of the table of artifacts in Markdown."""
    header = ("artifact", "size", "bits/weight", "KL divergence", "top-1", "perplexity", "tokens/s", "front")
    ahead = {m.name for m in run.front}
    rows = [
        (
            run.label(m),
            size(m.record["nbytes"]),
            f"{m.record['bits_per_weight']:.3f}",
            f"{m.record['quality']['kl']:.6f} ± {m.record['quality']['kl_error']:.6f}",
            f"{m.record['quality']['top1']:.2%}",
            f"{m.record['quality']['perplexity']:.4f}",
            f"{m.speed['speed']:.0f}" if m.speed.get("speed") else "–",
            "yes" if m.name in ahead else "",
        )
        for m in run.made
    ]
    yield from _rows(header, rows)


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"


#: What the Hub calls the libraries that load a format.
_LIBRARIES = {"gguf": "gguf", "openvino": "openvino", "onnx": "onnx", "onnx-portable": "onnx", "mlx": "mlx"}


def model_card(run: Run) -> str:
    """Return a model card: YAML that the Hub reads, then what the artifact is and what was measured of it.

    ``license`` is left out unless the source states one: it stays the source's, and its holder has to name it.
    """
    return "\n".join(_card(run)) + "\n"


def _card(run: Run) -> Iterator[str]:
    base = run.source.get("origin") or run.source.get("base_model") or run.source["path"]
    chosen = run.chosen
    yield "---"
    yield f"base_model: {_yaml(base)}"
    yield "base_model_relation: quantized"
    if chosen is not None:
        yield f"library_name: {_LIBRARIES.get(chosen.record['format'], 'transformers')}"
    if (stated := run.source.get("license")) is not None:
        yield f"license: {_yaml(stated)}"
    yield "pipeline_tag: text-generation"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("edgekit", "quantized", *([chosen.record["format"]] if chosen else [])))
    if chosen is not None:
        yield from _model_index(run)
    yield "---"
    yield ""
    yield f"# {base}, quantized with edgekit"
    yield ""
    if chosen is not None:
        quality, record = chosen.record["quality"], chosen.record
        yield f"`{record['file']}`: {size(record['nbytes'])}, {record['bits_per_weight']:.3f} bits a weight, made from"
        yield f"{base} ({size(run.source['nbytes'])}) by the recipe {record['recipe']} ({_METHODS[record['method']]})."
        yield f"KL divergence from the source {quality['kl']:.6f} ± {quality['kl_error']:.6f} nats, top-1 agreement"
        yield f"{quality['top1']:.2%}, over {quality['positions']:,} tokens that neither calibrated it nor chose it."
        yield ""
    yield "## All that were measured"
    yield ""
    yield from artifact_table(run)
    yield ""
    yield "## Licence"
    yield ""
    yield f"That of {base}; this is a copy of its weights in another form."
    yield ""
    yield "## Make it again"
    yield ""
    yield f"```console\n$ {run.result['command']}\n```"
    yield ""
    names = {
        n: d
        for n, d in run.hashes().items()
        if chosen is None or n.startswith("source") or n in chosen.record["sha256"]
    }
    yield from _rows(("file", "SHA-256"), [(f"`{name}`", f"`{digest}`") for name, digest in names.items()])


_METHODS = {
    "nearest": "rounded to nearest",
    "feedback": "rounded with error feedback",
    "fit": "precisions fitted to the size, with error feedback",
}


def _model_index(run: Run) -> Iterator[str]:
    assert run.chosen is not None
    quality = run.chosen.record["quality"]
    yield "model-index:"
    yield f"- name: {_yaml(run.chosen.name)}"
    yield "  results:"
    yield "  - task:"
    yield "      type: text-generation"
    yield "    dataset:"
    yield "      type: text"
    yield f"      name: {_yaml(', '.join(run.head['texts']) or 'sampled from the source')}"
    yield "    metrics:"
    for kind, name, value in (
        ("perplexity", "Perplexity", quality["perplexity"]),
        ("kl_divergence", "KL divergence from the source (nats)", quality["kl"]),
        ("accuracy", "Top-1 agreement with the source", quality["top1"]),
    ):
        yield f"    - type: {kind}"
        yield f"      name: {name}"
        yield f"      value: {value:.8g}"


def _yaml(text: str) -> str:
    """Return a text as YAML in quotes, as JSON writes it."""
    import json

    return json.dumps(text, ensure_ascii=False)


__all__ = ["SCHEMA", "artifact_table", "as_json", "as_markdown", "model_card"]

"""Checks of a model: its files, its template, its tokens, what it writes, and what it needs."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, MissingPluginError, UnsupportedModelError
from edgekit.manifest import stale_manifest
from edgekit.runtime import choose_runtime, load
from edgekit.runtime.chat import has_template, prompt_of, template_of
from edgekit.tokenizer import Tokenizer
from edgekit_workflow.diagnosing.case import Case, Finding, Trouble
from edgekit_workflow.diagnosing.machine import free_memory
from edgekit_workflow.memory import memory_needed
from edgekit_workflow.rules import default_rules

#: Files smaller than this are read in a moment, in the cache or not.
LARGE = 64 << 20
#: Tokens that a model writes to see whether it repeats itself, and the share of repeated runs of four.
WRITTEN, REPEATED = 96, 0.5
_QUESTION, _ANSWER = "Hello", "EDGEKIT ANSWER"
_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|?>|<[a-z]+_of_[a-z]+>|</?s>|\[/?INST\]")


def opened(case: Case, path: str | os.PathLike[str], source: str | os.PathLike[str] | None) -> tuple[Finding, Case]:
    """Open the artifact and the source; the case has them if both can be read."""
    try:
        artifact = edgekit.open(path)
        choose_runtime(artifact, case.runtime)
        theirs = None if source is None else edgekit.open(source)
    except MissingPluginError as error:
        return Finding("missing_plugin", Trouble(str(error), "install the plugin that the message names")), case
    except EdgekitError as error:
        cure = "give the path of a model" if isinstance(error, FileNotFoundError) else "fetch or convert it again"
        if isinstance(error, UnsupportedModelError):
            cure = "see docs/reference/families.md for what is supported; a plugin can add a family"
        return Finding("file", Trouble(str(error), cure)), case
    return Finding("file"), attrs.evolve(case, artifact=artifact, source=theirs)


def manifest(case: Case) -> Trouble | None:
    """A manifest that does not belong to the file."""
    stale = stale_manifest(case.model.path)
    return None if stale is None else Trouble(stale, "fetch both again, or delete the manifest if the file is right")


def _tokenizer(artifact: Artifact) -> Tokenizer | None:
    try:
        return artifact.tokenizer
    except EdgekitError:
        return None


def tokenizer(case: Case) -> Trouble | None:
    """No tokenizer, or one of an unknown kind."""
    try:
        found = case.model.tokenizer
    except EdgekitError as error:
        return Trouble(str(error), "convert again from a source that has its tokenizer's files")
    if found is None:
        return Trouble(
            "it has no tokenizer, so it takes no text", "convert again from a source that has its tokenizer's files"
        )
    return None


def template(case: Case) -> Trouble | None:
    """No chat template, or one that fails."""
    try:
        if not has_template(case.model):
            return Trouble(
                "it has no chat template: chats are refused with 400",
                "base models have none: use completions; else convert again from the tuned model with its "
                "tokenizer_config.json",
                certain=False,
            )
        prompt_of(case.model, _QUESTION)
    except MissingPluginError as error:
        return Trouble(str(error), "pip install 'edgekit-core[chat]'")
    except EdgekitError as error:
        return Trouble(f"its chat template fails: {error}", "take the template of the source, and convert again")
    return None


def template_of_another_model(case: Case) -> Trouble | None:
    """A chat template of another model."""
    found = _tokenizer(case.model)
    text = _rendered(case.model)
    if found is None or text is None:
        return None
    if case.source is not None and _template(case.source) not in (None, _template(case.model)):
        return Trouble("its chat template is not the source's", "convert again, or put the source's template in")
    known = set(found.tokens)
    strange = sorted({marker for marker in _MARKER.findall(text) if marker not in known})
    if strange and len(found.encode(strange[0], add_special=False)) > 1:
        return Trouble(
            f"its chat template writes {', '.join(strange[:3])}, which the vocabulary does not have as a token",
            "the template is another model's: take the template of the source, and convert again",
        )
    return None


def _template(artifact: Artifact) -> str | None:
    try:
        return template_of(artifact) if has_template(artifact) else None
    except EdgekitError:
        return None


def _rendered(artifact: Artifact) -> str | None:
    """A conversation of three messages, as the template writes it; the last two are the assistant's and a question."""
    messages = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _QUESTION},
    ]
    try:
        return prompt_of(artifact, messages)
    except EdgekitError:
        return None


def end_token(case: Case) -> Trouble | None:
    """No end token: no text ends before a limit."""
    found = _tokenizer(case.model)
    if found is None:
        return None
    ends = [number for number in found.end_ids if number < len(found.tokens)]
    cure = "convert again from a source with its generation_config.json and tokenizer's files"
    if not ends:
        return Trouble("it has no end token: every text goes on to its limit", cure)
    theirs = None if case.source is None else _tokenizer(case.source)
    lost = () if theirs is None else sorted(set(theirs.end_ids) - set(found.end_ids))
    if theirs is not None and lost:
        names = ", ".join(repr(theirs.tokens[n]) for n in lost if n < len(theirs.tokens))
        return Trouble(f"the source ends texts at {names}, the artifact does not", cure)
    return None


def end_of_turn(case: Case) -> Trouble | None:
    """A token that ends the assistant's turn in the template, but no text."""
    found, text = _tokenizer(case.model), _rendered(case.model)
    if found is None or text is None:
        return None
    after = _MARKER.search(text.rpartition(_ANSWER)[2])
    if after is None or after[0] not in found.tokens:
        return None
    number = found.tokens.index(after[0])
    if number in found.end_ids:
        return None
    return Trouble(
        f"its chat template ends the assistant's turn with {after[0]}, which ends no text: answers run into the next "
        "turn",
        f"serve with stop texts or stop_token_ids [{number}], or add the token to eos_token_id and convert again",
    )


def writing(case: Case) -> Trouble | None:
    """Text that repeats itself, or values that are no numbers."""
    found = _tokenizer(case.model)
    if found is None or not _predicts(case.model):
        return None
    try:
        with load(case.model, case.runtime) as model:
            logits = model.logits(found.encode("Once upon a time")[:8])
            if not np.isfinite(logits).all():
                return Trouble(
                    f"the runtime {model.name} computes values that are no numbers",
                    "edgekit blame names the layer; quantize with more bits, or take another runtime",
                )
            text = model.generate("Once upon a time", max_tokens=_room(case.model), temperature=0.8, seed=1)
    except EdgekitError as error:
        return Trouble(f"it does not run: {error}", "see the message; `edgekit doctor` checks the installation")
    share = repeated(found.encode(text, add_special=False))
    if share <= REPEATED:
        return None
    return Trouble(
        f"of what it writes {share:.0%} repeats: {text[-60:]!r}",
        "edgekit gate --against SOURCE tells which tensor, token or template is at fault; if the source repeats "
        "itself too, set a repetition_penalty",
    )


def _predicts(artifact: Artifact) -> bool:
    try:
        return bool(artifact.model.config.causal)
    except EdgekitError:
        return True


def _room(artifact: Artifact) -> int:
    try:
        return max(8, min(WRITTEN, artifact.model.config.context - 16))
    except EdgekitError:
        return WRITTEN


def repeated(ids: list[int]) -> float:
    """Return the share of runs of four tokens that came before."""
    runs = Counter(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
    return 1 - len(runs) / runs.total() if runs else 0.0


def context(case: Case) -> Trouble | None:
    """A context beyond what the model was trained for."""
    try:
        trained = case.model.model.config.context
    except EdgekitError:
        return None
    if case.context is None or case.context <= trained:
        return None
    return Trouble(
        f"a context of {case.context:,} tokens; the model was trained for {trained:,}, and longer prompts are refused",
        f"serve with at most {trained:,} tokens, shorten what is asked, or take a model with a longer context",
    )


def memory(case: Case) -> Trouble | None:
    """More memory than is free."""
    try:
        config = case.model.model.config
        tokens = None if case.context is None else min(case.context, config.context)
        needed = memory_needed(case.model, tokens, choose_runtime(case.model, case.runtime).name)
    except EdgekitError:
        return None
    free = free_memory(case.group)
    if free is None or needed.needed <= free:
        return None
    return Trouble(
        f"it needs about {needed.needed:,} bytes of memory with a context of {needed.context:,} tokens, {free:,} are "
        "free",
        "close other programs, raise the limit of the process or the container, serve a shorter context, or quantize "
        "with fewer bits: edgekit recommend",
    )


def slow_runtime(case: Case) -> Trouble | None:
    """Only the reference runtime for the format."""
    if case.runtime is not None or choose_runtime(case.model, None).name != "numpy":
        return None
    for framework in default_rules().frameworks.values():
        if framework.format == case.model.format:
            return Trouble(
                f"no runtime for {case.model.format} is installed but numpy, which is exact and slow",
                f"pip install {' '.join(framework.distributions)}",
                certain=False,
            )
    return Trouble(
        f"{case.model.format} is run with numpy, which is exact and slow",
        "convert it for a runtime: edgekit recommend names one",
        certain=False,
    )


def cold_cache(case: Case) -> Trouble | None:
    """A file that the system has not cached."""
    for file in case.model.files:
        if file.stat().st_size >= LARGE and (trouble := cold(file)) is not None:
            return trouble
    return None


def cold(file: Path) -> Trouble | None:
    """Return the trouble of a file of which less than half is in memory; None if it is, or that is not known."""
    share = cached_share(file)
    if share is None or share >= 0.5:
        return None
    return Trouble(
        f"{share:.0%} of {file.name} is in the system's cache: the first texts wait for the disk",
        f"read it once before serving (cat {file} > /dev/null), and leave memory free for it",
        certain=False,
    )


def cached_share(file: Path) -> float | None:
    """Return the share of a file's pages that are in memory, by Linux's ``mincore``; None elsewhere."""
    size = file.stat().st_size
    if not sys.platform.startswith("linux") or not size:
        return None
    libc: Any = ctypes.CDLL(None, use_errno=True)
    pages = -(-size // mmap.PAGESIZE)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        present = np.zeros(pages, np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(present.ctypes.data)
        )
        del view  # else the mapping cannot be closed
    return None if failed else float((present & 1).mean())


#: Name -> check, in the order in which they run.
MODEL_CHECKS: Mapping[str, Callable[[Case], Trouble | None]] = {
    "manifest": manifest,
    "tokenizer": tokenizer,
    "template": template,
    "template_of_another_model": template_of_another_model,
    "end_token": end_token,
    "end_of_turn": end_of_turn,
    "context": context,
    "memory": memory,
    "slow_runtime": slow_runtime,
    "cold_cache": cold_cache,
    "writing": writing,
}

__all__ = ["LARGE", "MODEL_CHECKS", "REPEATED", "WRITTEN", "cached_share", "cold", "opened", "repeated"]

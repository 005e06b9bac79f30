"""Mutation testing of `edgekit.reference` with mutmut: what ``nox -s mutants`` runs, in a folder of copies.

from edgekit.precision import find_precision
mutmut changes the code in thousands of ways, one at a time, and forks a process for each mutant. Nearly every mutant
changes a byte of a known answer, and those are asked without pytest, which takes a tenth of the time. A mutant that
they do not notice meets the tests that reach its function: a few examples of each property, the quickest test first.

    python tests/mutants.py run [mutant ...]    what `mutmut run` does; verdicts are kept, so that a run can go on
    python tests/mutants.py again                the same, with those again that have survived
    python tests/mutants.py table               mutants, killed and survived of each module, as Markdown
    python tests/mutants.py survivors           every survivor, grouped by what it changed, as Markdown

EDGEKIT_MUTANT_SECONDS: CPU seconds of pytest before a mutant counts as a survivor; 0 asks the known answers only.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

SECONDS = float(os.environ.get("EDGEKIT_MUTANT_SECONDS", "20"))
EXAMPLES = int(os.environ.get("EDGEKIT_MUTANT_EXAMPLES", "10"))
CONVENTIONS = ("ggml", "mlx", "openvino", "onnx", "olive", "affine", "floats")
KILLED = {1, 3, 36, 37, 24, -24, 152, 255, -9, -11}  # exit statuses: a test failed, ran out of time, or crashed


# The known answers, asked directly.


@cache
def known_answers():
    """What the tests of the stored answers know: precision, answer, and the check of what it decodes to."""
    sys.path.insert(0, str(Path("tests/core").resolve()))
    from test_decoded_answers import ANSWERS, holds

    from edgekit.precision import find_precision

    return [(find_precision(answer.precision), key, answer, holds) for key, answer in ANSWERS.items()]


def notice(mutant: str) -> bool:
    """Whether the known answers notice a mutant, such as ``edgekit.reference.mlx.x_encode__mutmut_3``."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return not all(answered(*known) for known in known_answers() if concerns(mutant, known[0]))


def concerns(mutant: str, precision) -> bool:
    """Whether the mutated code serves a precision: its convention's, its block type's, or everybody's."""
    module, *rest = mutant.removeprefix("edgekit.reference.").split(".")
    convention = "floats" if precision.convention == "float" else precision.convention
    if module not in CONVENTIONS:
        return True
    block_types = {p.kind.lower() for p, *_ in known_answers() if p.convention == "ggml"}
    return module == convention and (rest[0] not in block_types or rest[0] == precision.kind.lower())


def answered(precision, key, answer, holds) -> bool:
    """Whether the bytes are the framework's, the input is untouched, and decoding gives the known values."""
    from edgekit.reference import reference
    from edgekit.testing._explain import same_parts

    try:
        x = answer.x.copy()
        given = reference(precision).encode(x, precision, answer.importance)
        holds(key, answer)
        return same_parts(answer.parts, given) and x.tobytes() == answer.x.tobytes()
    except Exception:
        return False


# The tests, in little time.


class Few:
    """A pytest plugin: few examples of every property, always the same, and an end after `SECONDS`."""

    def __init__(self):
        self.start = time.process_time()

    def pytest_collection_modifyitems(self, items):
        from hypothesis import HealthCheck, Phase, settings

        for item in items:
            function = getattr(item, "obj", None)
            given = getattr(function, "_hypothesis_internal_use_settings", None)
            if given is not None:
                function._hypothesis_internal_use_settings = settings(
                    given,
                    max_examples=min(EXAMPLES, given.max_examples),
                    phases=[Phase.explicit, Phase.generate],
                    derandomize=True,
                    database=None,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                )

    def pytest_runtest_setup(self, item):
        import pytest

        if os.environ.get("MUTANT_UNDER_TEST", "").find("__mutmut_") > 0 and time.process_time() > self.start + SECONDS:
            pytest.exit("survived its time", returncode=0)


def extend_mutmut() -> None:
    """Let mutmut's runner ask the known answers before it calls pytest, and pytest use `Few`."""
    from mutmut.runners.harness import PytestRunner
    from mutmut.utils.file_utils import change_cwd

    run_tests, execute = PytestRunner.run_tests, PytestRunner.execute_pytest

    def asking_first(self, *, mutant_name, tests):
        with change_cwd("mutants"):
            if mutant_name and notice(mutant_name):
                return 1
            if not mutant_name:
                known_answers()
        if not SECONDS:
            return 0 if os.environ.get("MUTANT_UNDER_TEST") != "fail" else 1
        if mutant_name:
            tests = [test for test in tests if "test_decoded_answers" not in test]  # asked already
        if mutant_name and not tests:
            return 0
        return run_tests(self, mutant_name=mutant_name, tests=tests)

    def with_few(self, params, plugins=(), **more):
        return execute(self, params, plugins=[*plugins, Few()], **more)

    PytestRunner.run_tests, PytestRunner.execute_pytest = asking_first, with_few


# What came out.


def verdicts() -> dict[str, dict[str, int | None]]:
    """Exit status of every mutant, by module path; None where it was not run."""
    found = sorted(Path("mutants/src/edgekit/reference").rglob("*.meta"))
    return {
        str(p.relative_to("mutants/src/edgekit/reference"))[:-5]: json.loads(p.read_text())["exit_code_by_key"]
        for p in found
    }


def table() -> None:
    """Print mutants, killed, survived and not run of each module, and of all."""
    print("| module | mutants | killed | survived | score |\n|---|---:|---:|---:|---:|")
    whole: Counter[str] = Counter()
    for module, codes in verdicts().items():
        counts = Counter("killed" if c in KILLED else "not run" if c is None else "survived" for c in codes.values())
        whole += counts
        if codes:
            print(row(f"`{module}`", counts))
    print(row("**all**", whole))


#: Why no test notices a survivor: the first pattern in "function: code ⟦before→after⟧ code".
REASONS = {
    r"(reshape|columns|per_block = )\(?[^⟦]*-⟦1→2⟧": "the same: numpy takes every negative number for the open dimension",
    r"axis=⟦-→\+⟧|axis=-⟦1→2⟧|⟦-→\+⟧1, (bitorder|keepdims)": "the same: the last axis by another number",
    r"⟦(dtype=)?(np\.(u?int|float)\d+|\"<u4\")→(None)?⟧": "the same: another dtype on the way, which holds the values too",
    r"strict=⟦|⟦strict=": "the same: `strict` of a zip whose arguments are equally long",
    r"(out|copy|where)=⟦|⟦(out|copy|where)=|⟦, (out|copy|where)=": "the same: where a result is written, or what stands beside it",
    r"unpack_lsb\(": "the same: how many codes to unpack, where the bytes hold no more",
    r"cast\(⟦F32|cast\(⟦Ref": "the same: what a type checker reads",
    r"zeros_like\(⟦|global_scale\"\]\.reshape\(|reshape\(1⟦|reshape\(1, ⟦|keepdims=⟦": "the same: one number in another shape",
    r"range\(⟦1, →⟧": "the same: one round more, which changes nothing",
    r"tame|_TAME|_FAR|_WRAP|_REACH|self\.finite|isfinite\(v\.m|v\.shape\[1\]": "which of two ways is taken, where both give the same",
    r"peak\[zero\]|span\[self\.flat\]|np\.where\((zero|unusable), ⟦|initial=": "a placeholder where the result is not taken",
    r"errstate\(": "which of numpy's warnings are silenced",
    r"_slabs|chunks:|_CHUNK|_SLAB|slice\(|\.stop ": "how much is worked on at once",
    r"np\.(u?int|float)\d+\(⟦": "a placeholder where the result is not taken",
    r"\*\*[-+]?\d*⟦|⟦\d→\d⟧\.0\*\*|_SLOP": "a bound: its allowance for rounding, a millionth or less",
    r"[<>]⟦(→=|=→)⟧": "`<` for `<=`, where both sides are never equal or both branches give the same",
    r"^(\w*bound|_gap|_half_step\w*|_finite):": "a bound, where another of its terms is wider",
    r"clip\(|minimum\(|maximum\(": "a limit that no value of the tests exceeds",
    r"overflowed:|raise |Error": "what is said of overflow",
}


OTHER = "a rare case that these tests do not reach, or one to be tested next"


def fragment(function: str, before: str, after: str) -> str:
    """The change in its line: ``decode: x.astype(⟦np.float32→None⟧)``."""
    start = alike(before, after)
    end = alike(before[start:][::-1], after[start:][::-1])
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    return f"{function}: {before[:start]}⟦{old}→{new}⟧{before[len(before) - end :]}"


def alike(one: str, other: str) -> int:
    """How many characters two lines begin with in common."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def survivors() -> None:
    """Print every survivor under the reason of its group."""
    groups: dict[str, list[str]] = {}
    for module, codes in verdicts().items():
        changes = changed_lines(Path("mutants/src/edgekit/reference") / module)
        for name in (name for name, code in codes.items() if code is not None and code not in KILLED):
            function = name.rpartition(".")[2]
            label = function.partition("__mutmut_")[0].removeprefix("x_").strip("xǁ").replace("ǁ", ".")
            change = fragment(label, *changes[function])
            reason = next((reason for pattern, reason in REASONS.items() if re.search(pattern, change)), OTHER)
            groups.setdefault(reason, []).append(f"{module} {change}")
    for reason in [*dict.fromkeys(REASONS.values()), OTHER]:
        if reason in groups:
            print(f"### {reason[0].upper()}{reason[1:]} ({len(groups[reason])})\n")
            print("```text\n" + "\n".join(groups[reason]) + "\n```\n")


def changed_lines(path: Path) -> dict[str, tuple[str, str]]:
    """Of each mutated function its first line that differs from the original's: (before, after)."""
    source = path.read_text()
    lines = source.splitlines()
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    bodies = {n.name: [line.strip() for line in lines[n.lineno : n.end_lineno]] for n in nodes if "__mutmut_" in n.name}
    found = {}
    for name, body in bodies.items():
        original = bodies[name.partition("__mutmut_")[0] + "__mutmut_orig"]
        found[name] = next(((a, b) for a, b in zip(original, body, strict=False) if a != b), ("its signature", ""))
    return found


def forget_survivors() -> None:
    """Have the mutants that survived, or that no test reached, run again."""
    for meta in Path("mutants").rglob("*.meta"):
        content = json.loads(meta.read_text())
        codes = content["exit_code_by_key"]
        content["exit_code_by_key"] = {name: code if code in KILLED else None for name, code in codes.items()}
        meta.write_text(json.dumps(content, indent=4))


def row(name: str, counts: Counter[str]) -> str:
    run = counts["killed"] + counts["survived"]
    score = f"{counts['killed'] / run:.1%}" if run else "not run"
    return f"| {name} | {counts.total()} | {counts['killed']} | {counts['survived']} | {score} |"


def main(verb: str, *mutants: str) -> None:
    if verb in ("table", "survivors"):
        return {"table": table, "survivors": survivors}[verb]()
    if verb == "again":
        forget_survivors()
    extend_mutmut()
    from mutmut.__main__ import _run

    _run(mutants, int(os.environ.get("EDGEKIT_MUTANT_PROCESSES", "2")))


if __name__ == "__main__":
    main(*sys.argv[1:])

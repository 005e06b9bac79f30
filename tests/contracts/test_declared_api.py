"""What is public is declared: `__all__` in every public module of the core and of the plugins."""

import ast
import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [ROOT / "core/src", *sorted((ROOT / "plugins").glob("*/src"))]
FILES = {
    ".".join(file.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): file
    for source in SOURCES
    for file in sorted(source.rglob("*.py"))
}
PUBLIC = [name for name in FILES if not any(part.startswith("_") for part in name.split("."))]
CORE = [name for name in PUBLIC if name.partition(".")[0] == "edgekit"]
PLUGINS = [name for name in PUBLIC if name.partition(".")[0] != "edgekit"]
#: What the registry loads by name, what plugins' tests import, and what is private in all but its name.
USED_OTHERWISE = {
    "edgekit.runtime.numpy",
    *("edgekit.testing.models", "edgekit.testing.strategies", "edgekit.testing.operations"),
    *("edgekit.architectures.decoder", "edgekit.architectures.links", "edgekit.architectures.mixture"),
    *("edgekit.evaluation.comparison", "edgekit.formats.writer", "edgekit.runtime.generation", "edgekit.runtime.reply"),
}
#: Who may write to stdout or stderr: the command line, plugins' commands, the bar that `progress=True` asks for, what
#: runs in a process of its own, and llama.cpp's log, which an environment variable asks for.
WRITES = re.compile(
    r"edgekit\.cli(\..*)?|edgekit_(gguf|mlx|olive)\.commands|edgekit_numba\.warm|edgekit\.pipeline\._progress"
    r"|edgekit\.runtime\._render|edgekit_llamacpp\.library|edgekit_workflow\.commands(\..*)?"
)


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text("utf-8"))


@functools.cache
def declared(name: str) -> list[str]:
    """A module's `__all__`; a plugin's is read from its source, since its framework may not be there."""
    if name in CORE:
        return importlib.import_module(name).__all__
    for node in tree(name).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AttributeError(f"{name} has no __all__")


def test_the_sources_are_found():
    assert len([name for name in FILES if name.startswith("edgekit.")]) > 150
    assert len(CORE) > 50
    assert {name.partition(".")[0] for name in PLUGINS} >= {"edgekit_example", "edgekit_gguf", "edgekit_serve"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_module_declares_its_names_once(name):
    names = declared(name)
    assert len(set(names)) == len(names)
    assert not [public for public in names if public.startswith("_") and public != "__version__"]


def test_each_declared_name_of_the_core_exists_and_has_a_docstring():
    for name in CORE:
        module = importlib.import_module(name)
        for public in declared(name):
            found = getattr(module, public)
            if inspect.isclass(found) or inspect.isfunction(found):
                assert inspect.getdoc(found), f"{name}.{public} has no docstring"


def test_each_declared_name_of_a_plugin_exists_and_has_a_docstring():
    for name in PLUGINS:
        nodes = list(ast.walk(tree(name)))
        defined = {node.name: node for node in tree(name).body if hasattr(node, "name")}
        bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        bound |= {alias.asname for node in tree(name).body if isinstance(node, ast.ImportFrom) for alias in node.names}
        for public in declared(name):
            assert public in defined or public in bound, f"{name} declares {public} and does not define it"
            assert public not in defined or ast.get_docstring(defined[public]), f"{name}.{public} has no docstring"


def test_what_is_imported_from_a_public_module_is_declared_there():
    for name in FILES:
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ImportFrom) and node.module in PUBLIC:
                names = {alias.name for alias in node.names if f"{node.module}.{alias.name}" not in FILES}
                private = {imported for imported in names if imported.startswith("_")}
                undeclared = names - private - set(declared(node.module))
                assert not undeclared, f"{name} imports {undeclared} of {node.module}, which does not declare it"


def test_the_library_does_not_print():
    """It warns through `warnings` and `logging`, and the command line shows that."""
    for name in FILES:
        called = {ast.unparse(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)}
        prints = called & {"print", "click.echo", "click.secho", "sys.stderr.write", "sys.stdout.write"}
        assert not prints or WRITES.fullmatch(name), f"{name} calls {prints}"


def test_types_are_named():
    """`Any` in at most 15 lines of 1,000: what has a type says it."""
    lines = [line for file in FILES.values() for line in file.read_text("utf-8").splitlines()]
    uses = [line for line in lines if re.search(r"\bAny\b", line) and "import" not in line]
    assert len(uses) * 1000 <= 15 * len(lines), f"{len(uses)} lines of {len(lines)} hold Any"


def imported(name):
    """The core's public modules that a module imports."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and node.module in CORE:
            full = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (one if one in FILES else node.module for one in full)


def imported_by_plugins():
    for name in FILES:
        if name.partition(".")[0] != "edgekit":
            yield from imported(name)


def test_public_modules_of_the_core_are_used_outside_their_room():
    """Others begin with an underscore. The number formats are read rather than imported, the families by name."""
    outside = set(imported_by_plugins())
    for name in FILES:
        room = name.split(".")[1:2]
        outside |= {used for used in imported(name) if used.split(".")[1:2] != room}
    packages = {name for name in CORE if FILES[name].name == "__init__.py"}
    read = ("edgekit.reference.", "edgekit.architectures.families.")
    unused = {name for name in CORE if not name.startswith(read)} - packages - outside
    unused -= USED_OTHERWISE
    assert not unused, f"no other room imports {sorted(unused)}; begin new names with an underscore"


def test_what_plugins_import_has_a_page():
    pages = "\n".join(page.read_text("utf-8") for page in sorted((ROOT / "docs/reference").rglob("*.md")))
    shown = set(re.findall(r"automodule:: (edgekit[\w.]*)\n   :members:", pages))
    missing = set(imported_by_plugins()) - {"edgekit"} - shown
    assert not missing, f"no page of docs/reference shows {sorted(missing)}; run python docs/generate.py"


def test_every_page_on_modules_shows_modules_that_somebody_imports():
    pages = "\n".join(page.read_text("utf-8") for page in sorted((ROOT / "docs/reference/modules").glob("*.md")))
    shown = set(re.findall(r"automodule:: (\S+)\n", pages))
    assert len(shown) > 30
    of_users = {"edgekit.encoding", "edgekit.evaluation"} | {
        f"edgekit.architectures.{name}" for name in ("decoder", "links", "mixers", "mixture")
    }
    unused = shown - set(imported_by_plugins()) - of_users
    assert not unused, f"no plugin imports {sorted(unused)}; run python docs/generate.py"

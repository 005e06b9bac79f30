"""What importing edgekit costs, and which way its modules look."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit

SOURCE = Path(edgekit.__file__).parent
ALLOWED = {"attr", "attrs", "click", "numpy", "pluggy"}
OPTIONAL = {
    "tokenizers",
    "jinja2",
    "llguidance",
    "rich",
    "hypothesis",
    "pytest",
    "ml_dtypes",
    "distributed",
    "ray",
    "mpi4py",
}  # imported inside functions only

# Lower layers first; a module imports from its own layer or below, at call time and for types too.
LAYERS = [
    {"errors", "typing"},
    {"files", "numerics"},
    {"plugin", "tokenizer", "manifest", "sample"},
    {"precision"},
    {"reference"},
    {"tensor"},
    {"architectures"},
    {"recipe"},
    {"artifact", "encoding"},
    {"formats", "bridges"},
    {"pipeline"},
    {"runtime"},
    {"evaluation"},
    {"testing"},
    {"cli", "__main__"},
]


def level(name: str) -> int:
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


FILES = [file for file in sorted(SOURCE.rglob("*.py")) if file != SOURCE / "__init__.py"]
modules = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))


def imported(file: Path):
    """Absolute names imported by a file, with whether the import stands at the top level."""
    tree = ast.parse(file.read_text("utf-8"))
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            module = node.module or ""
            names = [f"edgekit.{a.name}" for a in node.names] if module == "edgekit" else [module]
            yield from ((name, id(node) in top) for name in names)


@modules
def test_imports_point_downward(file):
    own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    for name, _ in imported(file):
        if not name.startswith("edgekit."):
            continue
        other = name.split(".")[1]
        assert level(other) <= level(own), f"{own} imports {other}, which lies above it"


def test_no_two_modules_import_each_other():
    """No circle, not even of imports inside functions or for types."""
    names = {module_name(file): file for file in FILES}
    needs = {name: {used for used in needed(file) if used in names and used != name} for name, file in names.items()}
    while free := {name for name, used in needs.items() if not used & needs.keys()}:
        needs = {name: used for name, used in needs.items() if name not in free}
    assert not needs, f"these import each other: {sorted(needs)}"


def module_name(file: Path) -> str:
    return ".".join(("edgekit", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def is_module(name: str) -> bool:
    place = SOURCE.parent / name.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def needed(file: Path):
    """Names of the modules that a file imports, or imports something from."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from [name for name in names if is_module(name)] or [node.module]


@modules
def test_only_declared_dependencies_at_the_top_level(file):
    for name, top in imported(file):
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package == "edgekit":
            continue
        allowed = ALLOWED if top and "testing" not in file.parts else ALLOWED | OPTIONAL
        assert package in allowed, f"{file.name} imports {package}"


def test_nobody_imports_testing_or_cli():
    for file in FILES:
        own = file.relative_to(SOURCE).parts[0]
        used = {name.split(".")[1] for name, _ in imported(file) if name.startswith("edgekit.")}
        forbidden = used & {"testing", "cli"} - {own}
        # The command line shows the conformance kit's results; everything else stays away from it.
        assert own in ("cli", "__main__.py") or not forbidden, f"{file.name} imports {forbidden}"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_edgekit_imports_nothing_beyond_the_dependencies():
    before = "import sys, json; before = set(sys.modules); import edgekit; "
    found = set(json.loads(run(before + "print(json.dumps(sorted(set(sys.modules) - before)))")))
    packages = {name.partition(".")[0] for name in found}
    foreign = (
        {p for p in packages if p not in sys.stdlib_module_names and not p.startswith("_")} - ALLOWED - {"edgekit"}
    )
    times = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import edgekit"], capture_output=True, text=True, check=True
    ).stderr.splitlines()[-1]
    assert not foreign, f"import edgekit also imports {foreign}; total: {times}"
    assert "numpy" not in packages, f"the names are meant to be lazy; total: {times}"


def test_the_core_names_import_only_the_dependencies():
    code = (
        "import sys, json, edgekit as e; e.encode, e.quantize, e.Precision, e.compare, e.plugins; "
        "print(json.dumps(sorted(m for m in sys.modules)))"
    )
    packages = {name.partition(".")[0] for name in json.loads(run(code))}
    assert not packages & {"gguf", "torch", "transformers", "openvino", "onnxruntime", "mlx", "tokenizers"}


def test_every_public_name_is_there():
    for name in edgekit.__all__:
        assert getattr(edgekit, name) is not None, name
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        _ = edgekit.quantise

"""The packages for phones: their C++ and Java code is compiled, and writes what edgekit's own runtime does."""

from __future__ import annotations

import base64
import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import sample
from edgekit.pipeline.packaging import package

COMPILER, JAVAC = shutil.which("g++"), shutil.which("javac")
llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python")
LIBRARY = Path(llama_cpp.__file__).parent / "lib"
HEADERS = next((p for p in (Path(llama_cpp.__file__).parents[1] / "include", Path(sys.prefix) / "include")
                if (p / "llama.h").exists()), None)  # fmt: skip
pytestmark = pytest.mark.skipif(
    COMPILER is None or HEADERS is None or not (LIBRARY / "libllama.so").exists(),
    reason="needs g++, llama.h and libllama.so",
)
PROMPTS = ("Once upon a time", "The café was", "Tom 👩‍🚀 said")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return edgekit.quantize(sample.path(), "Q8_0", to=tmp_path_factory.mktemp("model") / "sample.gguf")


@pytest.fixture(scope="module")
def expected(model):
    with edgekit.load(model, "llamacpp", context=256) as runtime:
        return [runtime.generate(prompt, max_tokens=20) for prompt in PROMPTS]


def compiled(sources, target, *options):
    """Build a library with the headers of llama-cpp-python, linked with its library; warnings are errors."""
    warnings = ["-Wall", "-Wextra", "-Werror"]
    linked = ["-L", LIBRARY, "-lllama", f"-Wl,-rpath,{LIBRARY}"]
    line = [COMPILER, "-std=c++17", "-O1", *warnings, "-shared", "-fPIC", "-isystem", HEADERS, *options, *sources]
    done = subprocess.run(
        [*map(str, line), "-o", str(target), *map(str, linked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def test_the_code_for_apple_writes_the_same(model, expected, tmp_path):
    package(model, "ios", to=tmp_path / "ios")
    sources = tmp_path / "ios/Sources/CEdgekitModel"
    library = ctypes.CDLL(
        compiled([sources / "edgekit_model.cpp"], tmp_path / "libmodel.so", "-I", sources / "include")
    )
    library.edgekit_open.restype = library.edgekit_generate.restype = ctypes.c_void_p
    library.edgekit_generate.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]
    library.edgekit_free_text.argtypes = library.edgekit_close.argtypes = [ctypes.c_void_p]
    assert library.edgekit_open(str(tmp_path / "none.gguf").encode(), 256, 1) is None
    opened = library.edgekit_open(str(tmp_path / "ios/Sources/EdgekitModel/model.gguf").encode(), 256, 1)

    def text(prompt, most):
        found = library.edgekit_generate(opened, prompt.encode(), most)
        if found is None:
            return None
        copied = ctypes.string_at(found).decode()
        library.edgekit_free_text(found)
        return copied

    assert [text(prompt, 20) for prompt in PROMPTS] == expected
    assert text(PROMPTS[0], 20) == expected[0], "the last text is forgotten"
    assert text("Once " * 300, 20) is None, "it does not fit the context"
    assert text("Once", 256) is None
    assert text("Once", 0) == ""
    library.edgekit_close(opened)


MAIN = """
import com.example.edgekit.EdgekitModel;
import java.io.PrintStream;

public class Main {
    public static void main(String[] given) throws Exception {
        PrintStream out = new PrintStream(System.out, true, "UTF-8");
        try (EdgekitModel model = new EdgekitModel(given[0], 256, 1)) {
            for (int i = 1; i < given.length; i++) {
                out.print(model.generate(new String(java.util.Base64.getDecoder().decode(given[i]), "UTF-8"), 20));
                out.print('\\0');
            }
            try {
                model.generate("Once", 256);
            } catch (IllegalArgumentException error) {
                out.print(error.getMessage() + '\\0');
            }
            model.close();
            try {
                model.generate("Once", 1);
            } catch (IllegalStateException error) {
                out.print(error.getMessage() + '\\0');
            }
        }
        try (EdgekitModel none = new EdgekitModel(given[0] + "x", 256, 1)) {
        } catch (java.io.IOException error) {
            out.print(error.getMessage().endsWith("cannot be loaded; the log has the reason"));
        }
    }
}
"""


@pytest.mark.skipif(JAVAC is None, reason="needs a JDK")
def test_the_code_for_android_writes_the_same(model, expected, tmp_path):
    package(model, "android", to=tmp_path / "android", options={"revision": "b6500"})
    native, home = tmp_path / "android/src/main/cpp", Path(JAVAC).resolve().parents[1]
    sources = [native / "edgekit_model.cpp", native / "edgekit_jni.cpp"]
    includes = ["-isystem", home / "include", "-isystem", home / "include/linux"]
    compiled(sources, tmp_path / "libedgekit_model.so", *includes)
    (tmp_path / "Main.java").write_text(MAIN)
    java = tmp_path / "android/src/main/java/com/example/edgekit/EdgekitModel.java"
    subprocess.run(
        [JAVAC, "-Xlint:all,-try", "-Werror", "-d", tmp_path / "out", java, tmp_path / "Main.java"], check=True
    )
    asked = [base64.b64encode(prompt.encode()).decode() for prompt in PROMPTS]
    asset = tmp_path / "android/src/main/assets/model.gguf"
    line = [home / "bin/java", f"-Djava.library.path={tmp_path}", "-cp", tmp_path / "out", "Main", asset, *asked]
    done = subprocess.run(list(map(str, line)), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split("\0") == [
        *expected,
        "the prompt is empty, or too long for the context",
        "the model is closed",
        "true",
    ]

"""Olive's passes through edgekit: each with a numerical check, without a network, and with crashes as errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoders import BERT
from make_olive_catalogue import NAMES, PATH, names
from olive_passes import ADAPTERS, CASES, LEFT, TUNED

import edgekit
from edgekit import sample
from edgekit.errors import (
    MissingPluginError,
    NonFiniteError,
    PluginError,
    QualityGateError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.pipeline.passes import run_pass
from edgekit.reference.onnx import encode
from edgekit.tensor import EncodedTensor
from edgekit.testing import run_pass_checks
from edgekit_olive import isolation, passes
from edgekit_olive.catalogue import entries
from edgekit_olive.passes import OlivePass

pytest.importorskip("olive")
CALIBRATION = Path(sample.__file__).parent / "heldout.txt"


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """The process that has imported Olive ends with the module."""
    yield
    if isolation._forking.cache_info().currsize:
        isolation._forking().close()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The sample model as a graph, folded, with blocks of 4 bits, and as a Hugging Face directory; and an encoder."""
    transformers, folder = pytest.importorskip("transformers"), tmp_path_factory.mktemp("sources")
    made = {"graph": edgekit.convert(sample.path(), folder / "graph", format="onnx-portable", dtype="F32")}
    made["hf"] = edgekit.convert(sample.path(), folder / "hf", dtype="F32")
    made["folded"] = run_pass(made["graph"], "olive:OnnxQuantizationPreprocess", to=folder / "folded")
    made["blocks"] = run_pass(made["folded"], "olive:OnnxBlockWiseRtnQuantization", to=folder / "blocks")
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(folder / "bert")
    made["encoder"] = edgekit.convert(folder / "bert", folder / "encoder", format="onnx", dtype="F32")
    (folder / "text.txt").write_text(sample.heldout_text())
    return {**made, "text": folder / "text.txt"}


@pytest.mark.parametrize("name", CASES)
def test_a_pass_computes_what_its_source_computes(name, sources, tmp_path):
    case, options = CASES[name], dict(CASES[name].options)
    if case.text:
        options = {"calibration": str(sources["text"]), "context": 32, "samples": 8, **options}
    source = sources[case.source]
    before = {file.name: (file.read_bytes(), os.stat(file).st_nlink) for file in source.files}
    made = run_pass(source, f"olive:{name}", to=tmp_path / "out", options=options)
    assert {file.name: (file.read_bytes(), os.stat(file).st_nlink) for file in source.files} == before
    assert not [file for file in made.path.rglob("*") if os.stat(file).st_nlink > 1 and file.is_file()]
    quality = made.manifest.quality
    if case.error is None:
        assert "were not compared with the source's: the result has other inputs: tokens" in made.notes["uncompared"]
    else:
        assert quality["output_error"] <= case.error
        assert quality["cosine"] >= 0.8
    assert quality["size_ratio"] > 0
    assert str(tmp_path) not in "".join(file.read_text("utf-8") for file in made.path.glob("*.json"))


def test_the_graph_after_a_pass_runs_in_the_runtime(sources, tmp_path):
    made = run_pass(sources["graph"], "olive:OnnxFloatToFloat16", to=tmp_path / "half")
    tokens = sources["graph"].tokenizer.encode("Once upon a time")
    with edgekit.load(sources["graph"], "onnxruntime") as one, edgekit.load(made, "onnxruntime") as other:
        a, b = one.logits(tokens), other.logits(tokens)
    assert np.abs(a - b).max() < 0.01 * a.std()
    assert made.nbytes < 0.55 * sources["graph"].nbytes


def test_blocks_rounded_by_olive_come_back_with_their_codes(sources):
    """Olive's RTN rounds as edgekit's reference of MatMulNBits does, on the sample model's matrices."""
    encoded = {name: t for name, t in sources["blocks"].tensors.items() if isinstance(t, EncodedTensor)}
    floats = {t.shape: [] for t in sources["hf"].tensors.values()}
    for tensor in sources["hf"].tensors.values():
        floats[tensor.shape].append(tensor.float32())
    checked = 0
    for tensor in encoded.values():
        if tensor.precision.name.startswith("onnx:int4-") and len(tensor.shape) == 2:
            read = tensor.read()
            wanted = [encode(x, tensor.precision) for x in floats.get(tensor.shape, [])]
            checked += any(all(np.array_equal(read.parts[k], w[k]) for k in w) for w in wanted)
    assert checked >= 21


def test_what_olive_packed_is_read_with_its_values(sources, tmp_path):
    """Olive's own module decodes the same values; the codes go on to MatMulNBits without another rounding."""
    from olive.common.quant.nn import QuantLinear
    from safetensors.torch import load_file

    made = run_pass(sources["hf"], "olive:Rtn", to=tmp_path / "rtn", options={"group_size": 32, "sym": False})
    packed = load_file(made.path / "model.safetensors")
    names = [name.removesuffix(".qweight") for name in packed if name.endswith(".qweight")]
    assert len(names) == 21
    for name in names:
        tensor, parts = made.tensors[f"{name}.weight"], [packed[f"{name}.{p}"] for p in ("qweight", "scales", "qzeros")]
        module = QuantLinear(tensor.shape[1], tensor.shape[0], bits=4, symmetric=False, group_size=32, bias=False)
        wanted = module.unpack_and_dequantize(parts[0], parts[1].float(), parts[2])
        np.testing.assert_array_equal(tensor.float32(), wanted.numpy(), err_msg=name)
    onward = edgekit.convert(made, tmp_path / "onnx", format="onnx")
    kinds = {t.precision.name for t in onward.tensors.values() if isinstance(t, EncodedTensor)}
    assert kinds == {"onnx:int4-asym-g32"}


@pytest.mark.parametrize("narrowed", [True, False])
def test_an_ir_has_the_constants_of_its_graph(narrowed, sources, tmp_path):
    """OpenVINO's converter numbers them anew; they get their names and shapes back, and no others."""
    options = {"compress_to_fp16": narrowed}
    made = run_pass(sources["graph"], "olive:OpenVINOConversion", to=tmp_path / "ir", options=options)
    assert made.format == "openvino"
    expected = sources["graph"].model.tensors
    assert made.model.tensors.keys() == expected.keys()
    for role, tensor in made.model.tensors.items():
        values = expected[role].float32()
        assert tensor.dtype == ("float16" if narrowed else "float32")
        assert np.array_equal(tensor.float32(), values.astype(tensor.dtype).astype(np.float32)), role
    onward = edgekit.convert(made, tmp_path / "hf", format="hf")
    assert onward.tensors.keys() == sources["hf"].tensors.keys()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_floats_of_a_pass_are_read(kind, sources, tmp_path):
    """Every matrix as the operator decodes it, which products with the identity show; then on to Hugging Face."""
    options = {"precision": kind}
    made = run_pass(sources["folded"], "olive:OnnxBnb4Quantization", to=tmp_path / "bnb", options=options)
    names = {role for role, tensor in made.model.tensors.items() if isinstance(tensor, EncodedTensor)}
    kinds = {made.model.tensors[role].precision.name for role in names}
    assert kinds == {f"packed:{'nf4' if kind == 'nf4' else 'bnb_fp4'}-g64"}
    assert len(names) >= 21
    onward = edgekit.convert(made, tmp_path / "hf", format="hf", dtype="F32")
    assert "decoded to floats" in onward.notes["decoded"]
    for role in names:
        assert np.array_equal(onward.model.tensors[role].float32(), made.model.tensors[role].float32()), role


def test_wrong_weights_are_refused(sources, tmp_path):
    """HQQ in olive-ai 0.13.0: the graph loads and computes, and has nothing to do with the model."""
    with pytest.raises(QualityGateError, match="OnnxHqqQuantization: the result's outputs have a cosine of"):
        run_pass(sources["folded"], "olive:OnnxHqqQuantization", to=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_run_twice_or_left_out():
    runnable = {name for name, entry in entries().items() if not entry.obstacle()}
    assert not CASES.keys() & LEFT.keys()
    assert runnable <= {*CASES, *LEFT, *TUNED, *ADAPTERS}
    assert {name for name in CASES if not entries()[name].obstacle()} == CASES.keys()
    assert len(CASES) >= 14


def test_the_catalogue_is_that_of_the_installed_version(tmp_path):
    command = [sys.executable, "-c", "import make_olive_catalogue as m; print(m.text(), end='')"]
    environment = isolation.environment(tmp_path)
    environment["PYTHONPATH"] = str(Path(__file__).parent)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == PATH.read_text("utf-8")


def test_the_names_that_are_registered_are_those_of_the_catalogue():
    assert names() == NAMES.read_text("utf-8")


WATCHER = """
import sys
log = open({log!r}, "a", buffering=1)
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        log.write(f"{{event}} {{arguments[-1] if event != 'socket.getaddrinfo' else arguments[0]}}\\n")
    if event == "open" and isinstance(arguments[0], str) and any(w in arguments[0] for w in ("deviceid", "olive.json")):
        if isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            log.write(f"writes {{arguments[0]}}\\n")
sys.addaudithook(hook)
"""


@pytest.mark.parametrize("forks", [True, False])
def test_no_connection_and_no_identifier(forks, sources, tmp_path, monkeypatch):
    """Another observer than the worker's own: a hook that Python's start-up installs, in both ways to run."""
    (tmp_path / "sitecustomize.py").write_text(WATCHER.format(log=str(tmp_path / "log")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)
    isolation._forking.cache_clear()
    if not forks:
        monkeypatch.delattr(os, "fork")
    homes = []
    real = isolation.run

    def run(job, work, what):
        told = real(job, work, what)
        homes.extend(str(file.relative_to(work)) for file in (work / "home").rglob("*") if file.is_file())
        assert told["connections"] == []
        return told

    monkeypatch.setattr(passes.isolation, "run", run)
    run_pass(sources["graph"], "olive:AddOliveMetadata", to=tmp_path / "out", options={"graph_name": "sample"})
    if forks:
        isolation._forking().close()
    assert (tmp_path / "log").read_text() == ""
    assert not [name for name in homes if "deviceid" in name or "telemetry" in name]


def test_a_connection_is_refused(tmp_path):
    """The worker's own hook, which the passes run under: what would connect gets an error, and is reported."""
    code = (
        "import socket; from edgekit_olive.worker import refuse_network; seen = refuse_network()\n"
        "try: socket.create_connection(('example.com', 443))\n"
        "except PermissionError as error: print(error, seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "look-up of example.com refused: Olive runs without a network" in done.stdout


BREAKS = {
    "exit": ("os._exit(3)", PluginError, r"its process ended without a result \(exit status 3\)"),
    "signal": ("os.kill(os.getpid(), 11)", PluginError, r"its process ended without a result \(SIGSEGV\)"),
    "raise": ("raise RuntimeError('the pass broke')", UnsupportedModelError, "RuntimeError at .*: the pass broke"),
    "module": ("import no_such_module", MissingPluginError, "needs the module no_such_module, which is not installed"),
    "nothing": ("return _Missing()", UnsupportedModelError, "which does not exist"),
    "empty": ("open(output_model_path, 'wb').close()", UnsupportedModelError, "it fails with"),
    "infinite": ("weights[:] = b'\\xff' * len(weights)", NonFiniteError, "not finite after the pass"),
    "zeros": ("weights[:] = bytes(len(weights))", QualityGateError, "below 0.5: Olive saved wrong weights"),
}
BODY = """
import os
from olive.passes.onnx.float16_conversion import OnnxFloatToFloat16 as P
from olive.model import ONNXModelHandler
def run(self, model, config, output_model_path):
    import onnx
    proto = onnx.load(model.model_path)
    tensor = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    weights = bytearray(tensor.raw_data)
    {body}
    tensor.raw_data = bytes(weights)
    if not os.path.exists(output_model_path): onnx.save(proto, output_model_path)
    return ONNXModelHandler(output_model_path)
P._run_for_config = run
"""


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_pass_is_an_error_and_leaves_the_target(how, sources, tmp_path, monkeypatch):
    """The pass is Olive's with another body, put in by Python's start-up: nothing of edgekit is replaced."""
    body, error, message = BREAKS[how]
    program = BODY.format(body=body) + "\nclass _Missing:\n    model_attributes = None\n    model_path = '/nowhere'\n"
    (tmp_path / "broken.py").write_text(program)
    monkeypatch.setattr(isolation, "_PYTHON", (sys.executable, "-c", STARTER.format(folder=str(tmp_path))))
    isolation._forking.cache_clear()
    target = edgekit.convert(sources["graph"], tmp_path / "target", format="onnx-portable", dtype="F32")
    before = {file.name: file.read_bytes() for file in target.path.iterdir()}
    try:
        with pytest.raises(error, match=message):
            run_pass(sources["graph"], "olive:OnnxFloatToFloat16", to=target.path)
    finally:
        isolation._forking().close()
    assert {file.name: file.read_bytes() for file in target.path.iterdir()} == before
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".target")) == []


STARTER = "import sys; sys.path.insert(0, {folder!r}); import broken; from edgekit_olive import worker; worker.serve()"


def test_options_are_olives_own(sources, tmp_path):
    def refused(message, **options):
        with pytest.raises(UsageError, match=message):
            run_pass(sources["graph"], "olive:OnnxFloatToFloat16", to=tmp_path / "out", options=options)

    refused("has no option 'keep_io', did you mean 'keep_io_types'", keep_io=True)
    refused("keep_io_types='yes'; it takes bool", keep_io_types="yes")
    refused("provider='tpu'; choose one of cuda", provider="tpu")
    refused("least_cosine=2; choose a number between -1 and 1", least_cosine=2)
    with pytest.raises(UsageError, match=r"AimetQuantization needs calibration=, an .npz file or a text"):
        entries()["AimetQuantization"].check({}, calibrated=False)
    with pytest.raises(UsageError, match="olive:AddOliveMetadata needs graph_name \\(str\\)"):
        entries()["AddOliveMetadata"].check({}, calibrated=False)
    with pytest.raises(UsageError, match="bits='four'; it takes"):
        run_pass(sources["hf"], "olive:Rtn", to=tmp_path / "out", options={"bits": "four"})
    with pytest.raises(UsageError, match=r"it needs samples; give calibration=, an .npz file or a text"):
        run_pass(sources["graph"], "olive:OnnxStaticQuantization", to=tmp_path / "out")
    with pytest.raises(UsageError, match=r"olive:Gptq: it needs samples; give calibration="):  # it would download some
        run_pass(sources["hf"], "olive:Gptq", to=tmp_path / "out")
    beyond = [{"input_ids": np.full((1, 4), 512), "attention_mask": np.ones((1, 4), np.int64)}]
    with pytest.raises(UsageError, match=r"input_ids has ids from 512 to 512; the model has 0 to 511"):
        run_pass(sources["hf"], "olive:Gptq", to=tmp_path / "out", options={"calibration": beyond})
    refused("the calibration set is empty", calibration=[])
    refused("calibration sample 0 has the inputs x; the model takes input_ids", calibration=[{"x": 1}])
    assert not (tmp_path / "out").exists()


def test_a_quantizer_that_finds_nothing_says_so(tmp_path):
    """Olive's quantizers look for MatMul; graphs of the format onnx have FusedMatMul."""
    source = edgekit.convert(sample.path(), tmp_path / "fused", format="onnx", dtype="F32")
    made = run_pass(source, "olive:OnnxKQuantQuantization", to=tmp_path / "out")
    assert made.manifest.quality["size_ratio"] > 0.98
    assert "changed no operator" in made.notes["unchanged"]
    assert "write the model in the format onnx-portable first" in made.notes["unchanged"]


def test_what_cannot_run_here_says_why(sources, tmp_path):
    with pytest.raises(
        MissingPluginError, match="olive:AimetQuantization cannot run here: aimet_onnx is not installed"
    ):
        run_pass(sources["graph"], "olive:AimetQuantization", to=tmp_path / "out", options={"data_config": {}})
    with pytest.raises(UnsupportedModelError, match="it takes a model of several parts"):
        run_pass(sources["graph"], "olive:StaticLLM", to=tmp_path / "out")
    with pytest.raises(UnsupportedModelError, match="the pass 'olive:Rtn' takes hf, this is onnx-portable"):
        run_pass(sources["graph"], "olive:Rtn", to=tmp_path / "out")


def test_the_list_on_the_command_line(capsys):
    from click.testing import CliRunner

    from edgekit_olive.commands import command_passes

    listed = CliRunner().invoke(command_passes, []).output.splitlines()
    assert len(listed) == len(entries())
    assert any(line.startswith("Rtn ") and line.endswith("runs here") for line in listed)
    shown = json.loads(CliRunner().invoke(command_passes, ["olive:Rtn", "--json"]).output)
    assert shown[0]["options"]["group_size"]["default"] == 128
    assert "did you mean Rtn" in str(CliRunner().invoke(command_passes, ["rtnn"]).exception)


#: The format of the kit's model for the sources of `CASES`, and options where its widths need others.
FORMATS = {
    "hf": "hf",
    "graph": "onnx-portable",
    "folded": "onnx-portable",
    "blocks": "onnx-portable",
    "encoder": "onnx",
}
NARROW = {
    "OnnxBlockWiseRtnQuantization": {"block_size": 32},  # of 128 by default, and the kit's rows have 64
    "AutoClip": {"n_grid": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_every_pass_conforms(name):
    """Those that fix shapes or rename inputs, too: their results are models as before."""
    case = CASES[name]
    options = {**case.options, **NARROW.get(name, {})}
    if case.text:
        options = {"calibration": CALIBRATION, "context": 16, "samples": 2, **options}
    results = run_pass_checks(
        OlivePass(entries()[name]),
        format=FORMATS[case.source],
        options=options,
        profile="quick",
    )
    assert [f"{each.check}: {each.message}" for each in results if not each.ok] == []
    assert not [each for each in results if each.status == "skipped"]

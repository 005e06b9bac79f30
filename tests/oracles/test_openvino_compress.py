"""The pass openvino-compress: NNCF on whole IRs, the reference's bytes inside, and refusals before any work."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import nncf
import numpy as np
import pytest
from openvino_models import VOCAB, save, token_samples, tokens_model

import edgekit
from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.errors import (
    EdgekitError,
    InvalidFileError,
    MissingFileError,
    NonFiniteError,
    PluginError,
    ShapeError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.evaluation.samples import token_feed
from edgekit.pipeline import open_artifact
from edgekit.pipeline.passes import run_pass
from edgekit_openvino import compress, modes
from edgekit_openvino.compress import Options
from edgekit_openvino.library import openvino
from edgekit_openvino.measure import outputs
from edgekit_openvino.models import read_ir
from edgekit_openvino.quiet import quiet
from edgekit_openvino.samples import inputs_of

LAYERS = [f"layer{layer}.{which}" for layer in range(3) for which in ("gate", "up", "down")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tokens_model()[0], tmp_path_factory.mktemp("model") / "float")


def run(model: Path, to: Path, **options: object) -> edgekit.Artifact:
    return run_pass(model, "openvino-compress", to=to, options=options)


@pytest.mark.parametrize(
    "precision",
    [
        "int8-sym-channel", "int8-asym-channel", "int4-sym-g32", "int4-asym-g64", "int4-sym-channel", "int3-sym-g64",
        "int2-sym-g32", "nf4-g64", "cb4-g32", "fp4-g128", "fp8-g64", "mxfp4", "mxfp8", "nvfp4",
    ],
)  # fmt: skip
def test_every_mode_writes_the_references_bytes(model: Path, precision: str, tmp_path: Path):
    name = f"openvino:{precision}"
    options = {} if precision.startswith("int8") else {"all_layers": True}
    written = run(model, tmp_path / "out", mode=name, **options)
    values = tokens_model()[1]
    found = {tensor: written.tensors[tensor].precision.name for tensor in values}
    assert set(found.values()) == {name}
    for tensor, x in values.items():
        wanted, got = edgekit.encode(x, name).parts, written.tensors[tensor].read().parts
        assert wanted.keys() == got.keys()
        for part in wanted:
            np.testing.assert_array_equal(got[part], wanted[part], err_msg=f"{tensor} {part}")


def test_embeddings_and_the_last_layer_keep_eight_bits_unless_all_layers_are_asked_for(model: Path, tmp_path: Path):
    written = run(model, tmp_path / "out", mode="int4_sym", group_size=64)
    found = {name: written.tensors[name].precision.name for name in ["embed", *LAYERS, "head"]}
    assert found == {
        "embed": "openvino:int8-asym-channel",
        **dict.fromkeys(LAYERS, "openvino:int4-sym-g64"),
        "head": "openvino:int8-asym-channel",
    }
    assert written.manifest is not None
    quality = written.manifest.quality
    assert quality["layers"] == {"i4": 9, "u8": 2}
    assert 0.13 < quality["size_ratio"] < 0.17
    assert 0 < quality["output_error"] < 0.2
    assert quality["cosine"] > 0.98
    assert quality["measured_on"] == "noise"
    assert written.manifest.recipe == "openvino-compress mode=INT4_SYM group_size=64"
    assert set(written.manifest.versions) == {"edgekit-core", "edgekit-openvino", "nncf", "openvino", "numpy"}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"max_length": 7}


def test_the_same_source_gives_the_same_bytes_and_stays_as_it_is(model: Path, tmp_path: Path):
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    for name in ("one", "two"):
        run(model, tmp_path / name, mode="INT4_ASYM", group_size=32, ratio=0.7, calibration=token_samples(), awq=True)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert sorted(one) == [
        "edgekit.manifest.json", "generation_config.json", "openvino_model.bin", "openvino_model.xml",
    ]  # fmt: skip
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.parametrize("option", ["awq", "scale_estimation", "gptq", "lora_correction"])
def test_corrections_from_samples_change_the_weights(model: Path, option: str, tmp_path: Path):
    samples = token_samples()
    plain = run(model, tmp_path / "plain", mode="INT4_SYM", group_size=64, calibration=samples)
    chosen = {option: True} | ({"lora_rank": 8} if option == "lora_correction" else {})
    better = run(model, tmp_path / "better", mode="INT4_SYM", group_size=64, calibration=samples, **chosen)
    assert plain.manifest is not None
    assert better.manifest is not None
    assert better.manifest.quality["measured_on"] == "calibration"
    assert better.manifest.quality["samples"] == 12
    assert better.manifest.quality["output_error"] != plain.manifest.quality["output_error"]
    # AWQ moves the error from one channel to another; the others minimize it on these very samples.
    assert better.manifest.quality["output_error"] < plain.manifest.quality["output_error"] * (
        1.1 if option == "awq" else 1
    )


def test_ratio_ignored_scope_backup_and_codebook(model: Path, tmp_path: Path):
    mixed = run(model, tmp_path / "mixed", mode="INT4_SYM", group_size=64, ratio=0.5, backup_mode="int8_sym")
    assert mixed.manifest is not None
    assert mixed.manifest.quality["layers"] == {"i4": 4, "i8": 7}
    scope = {"patterns": [r"layer[01].*"], "types": ["Gather"]}
    some = run(model, tmp_path / "some", mode="NF4", group_size=-1, all_layers=True, ignored=scope)
    assert some.manifest is not None
    assert some.manifest.quality["layers"] == {"nf4": 4}
    one = run(model, tmp_path / "one", mode="INT8_SYM", ignored="head/product")
    assert one.manifest is not None
    assert one.manifest.quality["layers"] == {"i8": 10}
    levels = [-1.0, -0.5, 0.0, 0.25, 1.0]
    table = run(model, tmp_path / "table", mode="CODEBOOK", group_size=64, codebook=levels)
    assert table.manifest is not None
    assert table.manifest.quality["layers"]["u4"] == 9
    few = token_samples(2)
    most = {"patterns": [r"layer[012]\.(up|down).*", r"layer0.*"]}
    fitted = run(model, tmp_path / "fitted", mode="ADAPTIVE_CODEBOOK", group_size=64, ignored=most, calibration=few)
    assert fitted.manifest is not None
    assert fitted.manifest.quality["layers"] == {"u4": 2, "u8": 2}


def refused_by_us(mode: str, given: dict[str, object], sampled: bool) -> str:
    try:
        Options.of(mode, sampled=sampled, **given)
    except UsageError as error:
        return str(error)
    return ""


def refused_by_nncf(model: object, mode: str, given: dict[str, object], sampled: bool) -> str:
    options = {**given, "mode": nncf.CompressWeightsMode[mode]}
    if "backup_mode" in options:
        options["backup_mode"] = nncf.BackupMode[str(options["backup_mode"]).upper()]
    if "sensitivity" in options:
        options["sensitivity_metric"] = nncf.SensitivityMetric[str(options.pop("sensitivity")).upper()]
    if "codebook" in options:
        options["advanced_parameters"] = nncf.AdvancedCompressionParameters(codebook=options.pop("codebook"))
    if sampled:
        options["dataset"] = nncf.Dataset([{}])
    try:
        nncf.compress_weights(model, **options)
    except (nncf.ParameterNotSupportedError, nncf.ValidationError) as error:
        return str(error)
    return ""


def test_what_is_refused_is_what_nncf_refuses(monkeypatch: pytest.MonkeyPatch):
    """2,500 of 65,000 combinations; only the checks of NNCF run, not its work. What it refuses later, or leaves unused, is named."""
    import nncf.openvino.quantization.quantize_model as work

    monkeypatch.setattr(work, "compress_weights_impl", lambda **_: None)
    axes: dict[str, list[object]] = {
        "ratio": [None, 0.5, 1.0, 1.5],
        "group_size": [None, None, -1, 16, 32, 64],
        "all_layers": [None, True],
        "backup_mode": [None, None, "int8_sym"],
        "sensitivity": [None, None, "weight_quantization_error", "hessian_input_activation"],
        "subset_size": [128, 128, 128, 0],
        "codebook": [None, None, np.arange(4, dtype=np.float32), np.array([1, 0], np.float32)],
        **{name: [None, None, None, True] for name in ("awq", "scale_estimation", "gptq", "lora_correction")},
    }
    rng, toy, outcomes = random.Random(6), tokens_model(1)[0], set()
    for _ in range(2500):
        mode, sampled = rng.choice(modes.MODES), rng.random() < 0.6
        drawn = {name: rng.choice(values) for name, values in axes.items()}
        given = {name: value for name, value in drawn.items() if value is not None}
        ours = refused_by_us(mode, given, sampled)
        with quiet():
            theirs = refused_by_nncf(toy, mode, given, sampled)
        known = (
            (mode == "ADAPTIVE_CODEBOOK" and not sampled)  # a TypeError
            or (mode in ("CB4", "CODEBOOK", "ADAPTIVE_CODEBOOK") and "lora_correction" in given)  # an InternalError
            or (mode != "CODEBOOK" and "codebook" in given)  # silently unused
            or ("sensitivity" in given and given.get("ratio") in (None, 1.0))  # silently unused
        )
        assert bool(ours) == bool(theirs) or (ours and known), (mode, given, sampled, ours, theirs)
        outcomes.add(bool(ours))
    assert outcomes == {True, False}


SAYS = {
    "int8 takes no": ({"mode": "INT8_SYM", "awq": True, "calibration": []}, "INT8_SYM compresses all layers with one "
        "scale a row, without data: it takes no awq, calibration; leave it out, or choose INT4_SYM or INT4_ASYM"),
    "mode": ({"mode": "INT5"}, f"mode=INT5; choose one of {', '.join(modes.MODES)}"),
    "precision": ({"mode": "ggml:Q4_0"}, "ggml:Q4_0 is none of NNCF's formats; choose one whose name begins with openvino:"),
    "contradiction": ({"mode": "openvino:nf4-g64", "group_size": 32},
        "group_size=32 contradicts the precision's 64; leave it out"),
    "ratio": ({"mode": "NF4", "ratio": 2}, "ratio=2; choose a share of the weights between 0 and 1"),
    "group": ({"mode": "NF4", "group_size": -2}, "group_size=-2; choose -1 for one scale a row, or a size that divides "
        "the rows"),
    "fixed": ({"mode": "MXFP4", "group_size": 64}, "MXFP4 has groups of 32, not of 64; leave group_size out"),
    "data": ({"mode": "INT4_SYM", "gptq": True, "scale_estimation": True},
        "scale_estimation, gptq: this needs samples of the model's input; give calibration="),
    "floats": ({"mode": "FP4", "awq": True}, "awq cannot be had with FP4; choose an integer mode, NF4 or CB4"),
    "both": ({"mode": "INT4_SYM", "gptq": True, "lora_correction": True, "calibration": []},
        "gptq and lora_correction exclude each other; choose one of them"),
    "codebook": ({"mode": "CODEBOOK"}, "mode=CODEBOOK: CODEBOOK takes a codebook, and no other mode does"),
    "levels": ({"mode": "CODEBOOK", "codebook": [0, 0]},
        "codebook: at least two levels are needed, each larger than the one before"),
    "unknown": ({"mode": "NF4", "grup_size": 3}, "openvino-compress has no option 'grup_size'; it has calibration, context, "
        "mode, ratio, group_size, fallback, all_layers, ignored, backup_mode, sensitivity, awq, scale_estimation, gptq, "
        "lora_correction, lora_rank, codebook, subset_size"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAYS)
def test_what_does_not_go_together_is_said_before_anything_is_read(case: str, tmp_path: Path, monkeypatch):
    """The source is not even there."""
    monkeypatch.setattr(compress, "read_ir", lambda _: pytest.fail("the model was read"))
    options, said = SAYS[case]
    source = edgekit.Artifact(tmp_path / "ir", "openvino", (), {}, {}, dict, lambda: None)
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        run_pass(source, "openvino-compress", to=tmp_path / "out", options=options)


def bad(samples: object) -> dict[str, object]:
    return {"mode": "INT4_SYM", "group_size": 64, "awq": True, "calibration": samples}


TAKES = "the model takes input_ids int64 [?, ?]"
SAMPLES = {
    "empty": ([], UsageError, "the calibration set is empty; give at least one sample, better a hundred like the real input"),
    "names": ([{"ids": np.ones((1, 4), int)}], UsageError, f"calibration sample 0 has the inputs ids; {TAKES}"),
    "more": ([{"input_ids": 1, "mask": 2}], UsageError, f"calibration sample 0 has the inputs input_ids, mask; {TAKES}"),
    "count": ([(np.ones((1, 4), int), 3)], UsageError, f"calibration sample 0 has 2 arrays; {TAKES}"),
    "shape": ([np.ones((1, 4), int), np.ones(4, int)], ShapeError,
        f"calibration sample 1, input input_ids has shape [4]; {TAKES}"),
    "no values": ([np.ones((1, 0), int)], ShapeError, f"calibration sample 0, input input_ids has shape [1, 0]; {TAKES}"),
    "type": ([np.ones((1, 4))], UsageError, f"calibration sample 0, input input_ids holds float64; {TAKES}"),
    "NaN": ([np.ones((1, 4), int), np.array([[1, np.nan]])], NonFiniteError, "calibration sample 1, input input_ids holds "
        "nan at [0, 1]; mend the data, or leave the sample out"),
    "no iterable": (7, UsageError, "calibration samples of type int; give an iterable of samples"),
    "one sample": ({"input_ids": np.ones((1, 4), int)}, UsageError,
        "calibration samples of type dict; give an iterable of samples"),
}  # fmt: skip


@pytest.mark.parametrize("case", SAMPLES)
def test_samples_that_the_model_does_not_take(model: Path, case: str, tmp_path: Path):
    samples, error, said = SAMPLES[case]
    with pytest.raises(error, match=f"^{re.escape(said)}$"):
        run(model, tmp_path / "out", **bad(samples))
    assert list(tmp_path.iterdir()) == []


def test_samples_from_files(model: Path, tmp_path: Path):
    ids = np.concatenate([sample["input_ids"] for sample in token_samples()])
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    from_file = run(model, tmp_path / "a", **bad(tmp_path / "ids.npz"))
    from_memory = run(model, tmp_path / "b", **bad(token_samples()))
    assert from_file.files[0].read_bytes() == from_memory.files[0].read_bytes()
    np.savez(tmp_path / "other.npz", ids=ids)
    with pytest.raises(UsageError, match=r"other\.npz has the arrays ids; the model takes input_ids int64 \[\?, \?\]$"):
        run(model, tmp_path / "c", **bad(str(tmp_path / "other.npz")))
    with pytest.raises(
        MissingFileError, match=r"none\.npz: no such file; calibrate with an \.npz file or with a text$"
    ):
        run(model, tmp_path / "c", **bad(tmp_path / "none.npz"))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "ids.npz").read_bytes()[:300])
    with pytest.raises(InvalidFileError, match=r"torn\.npz: "):
        run(model, tmp_path / "c", **bad(tmp_path / "torn.npz"))
    np.savez(tmp_path / "pickled.npz", input_ids=np.array([[{}]], object))
    with pytest.raises(
        InvalidFileError, match=r"pickled\.npz: no \.npz file of arrays \(Object arrays cannot be loaded"
    ):
        run(model, tmp_path / "c", **bad(tmp_path / "pickled.npz"))
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(
        UsageError, match=r"^the model has no tokenizer that edgekit reads; calibrate with arrays: an \.npz"
    ):
        run(model, tmp_path / "c", **bad(tmp_path / "text.txt"))
    assert not (tmp_path / "c").exists()


def test_an_iterable_is_asked_for_no_more_than_is_needed(model: Path, tmp_path: Path):
    asked = itertools.count()
    endless = ({"input_ids": np.full((1, 4), next(asked) % VOCAB)} for _ in itertools.count())
    run(model, tmp_path / "out", **bad(endless), subset_size=5)
    assert next(asked) == 5


def test_a_model_without_layers_to_compress(tmp_path: Path):
    ov = openvino()
    data = ov.opset13.parameter([1, 4], np.float32, name="x")
    save(ov.Model([ov.opset13.relu(data)], [data]), tmp_path / "bare")
    with pytest.raises(
        UnsupportedModelError, match=r"^the model has no layer that INT8_ASYM compresses \(matrix products"
    ):
        run(tmp_path / "bare", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_a_model_that_is_compressed_already(model: Path, tmp_path: Path):
    run(model, tmp_path / "once", mode="INT8_SYM")
    with pytest.raises(UnsupportedModelError, match=r"outside the ignored scope; it has 11 in i8 already\)$"):
        run(tmp_path / "once", tmp_path / "twice", mode="INT4_SYM")


def test_what_nncf_refuses_or_fails_at_is_an_error_of_ours(model: Path, tmp_path: Path, monkeypatch):
    with pytest.raises(UsageError, match=r"^mode INT4_SYM: NNCF refuses: Failed to apply group-wise quantization with"):
        run(model, tmp_path / "out", mode="INT4_SYM", group_size=48)
    with pytest.raises(
        UsageError, match=r"^mode NF4: NNCF refuses: Ignored nodes that matches names \['nothing'\] were"
    ):
        run(model, tmp_path / "out", mode="NF4", group_size=64, ignored=["nothing"])
    with pytest.raises(
        UsageError, match=r"^ignored has names, nodes; it takes names, patterns and types, each a list$"
    ):
        run(model, tmp_path / "out", mode="NF4", ignored={"names": [], "nodes": []})
    monkeypatch.setattr(nncf, "compress_weights", lambda *_, **__: {}[1])
    with pytest.raises(PluginError, match=r"^mode NF4: NNCF fails \(KeyError: 1\); other options"):
        run(model, tmp_path / "out", mode="NF4")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_the_group_size_does_not_divide_may_be_left_alone(model: Path, tmp_path: Path):
    written = run(model, tmp_path / "out", mode="INT4_SYM", group_size=256, fallback="ignore")
    assert written.manifest is not None
    assert written.manifest.quality["layers"] == {"i4": 3, "u8": 2}  # the rows of 256; those of 128 stay in float


def test_targets(model: Path, tmp_path: Path):
    with pytest.raises(
        UsageError, match=r"out\.xml: name a directory; it gets openvino_model\.xml and openvino_model\.bin$"
    ):
        run(model, tmp_path / "out.xml")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"holds diary\.txt, which is not part of an artifact"):
        run(model, tmp_path / "mine")
    run(model, tmp_path / "out", mode="INT8_SYM")
    run(model, tmp_path / "out", mode="INT8_ASYM")  # an artifact may be replaced
    assert open_artifact(tmp_path / "out").manifest.recipe == "openvino-compress mode=INT8_ASYM"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_a_failure_while_writing_leaves_nothing_behind(model: Path, tmp_path: Path, monkeypatch):
    def fails(*_: object) -> None:
        raise EdgekitError("measuring failed")

    monkeypatch.setattr(compress, "compare", fails)
    with pytest.raises(EdgekitError, match=r"^measuring failed$"):
        run(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_and_its_clean_stdout(model: Path, tmp_path: Path):
    ids = np.concatenate([sample["input_ids"] for sample in token_samples()])
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    line = [sys.executable, "-m", "edgekit", "apply", "openvino-compress", str(model), "--to", str(tmp_path / "out")]
    options = ["mode=int4_sym", "group_size=32", "awq=true", f"calibration={tmp_path / 'ids.npz'}"]
    line += [word for option in options for word in ("-o", option)]
    loud = {name: value for name, value in os.environ.items() if name not in ("CI", "NNCF_CI")} | {
        "HOME": str(tmp_path)
    }
    done = subprocess.run([*line, "--json"], capture_output=True, text=True, env=loud, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["quality"]["layers"] == {"i4": 9, "u8": 2}
    assert told["pass"] == "openvino-compress"
    assert not (tmp_path / "intel").exists()  # no telemetry
    wrong = subprocess.run([*line, "-o", "ratio=7"], capture_output=True, text=True, env=loud, check=False)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "edgekit: error: ratio=7; choose a share of the weights between 0 and 1\n"


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model as an IR in float."""
    path = tmp_path_factory.mktemp("language") / "float"
    edgekit.convert(sample.path(), path, format="openvino", dtype="F32")
    return path


def test_a_language_model_is_calibrated_on_a_text(language: Path, tmp_path: Path):
    (tmp_path / "text.txt").write_text(sample.heldout_text()[:6000])
    options = {"mode": "INT4_SYM", "group_size": 64, "subset_size": 8, "context": 32}
    plain = run(language, tmp_path / "plain", **options, calibration=tmp_path / "text.txt")
    better = run(language, tmp_path / "better", **options, calibration=str(tmp_path / "text.txt"), gptq=True)
    assert plain.manifest is not None
    assert better.manifest is not None
    assert better.manifest.quality["samples"] == 8
    assert better.manifest.quality["output_error"] < 0.9 * plain.manifest.quality["output_error"]
    assert better.manifest.quality["cosine"] > 0.99
    # It still is the model that it was: the same tensors, a tokenizer, and logits in numpy like those of the graph.
    assert set(better.tensors) == set(open_artifact(language).tensors)
    assert better.tokenizer is not None
    ids = np.asarray(better.tokenizer.encode(sample.heldout_text()[7000:7200]))
    feed = token_feed(ids, inputs_of(read_ir(better)))
    (graph,) = outputs(read_ir(better), [feed])
    ours = Transformer(better.model).logits(ids)
    assert np.abs(ours - graph[0]).max() <= 1e-4 * np.abs(ours).max()
    other = token_feed(ids, inputs_of(read_ir(plain)))
    assert not np.array_equal(graph, next(outputs(read_ir(plain), [other])))


def test_texts_that_make_no_sample(language: Path, tmp_path: Path):
    (tmp_path / "short.txt").write_text("Once upon a time")
    options = {"mode": "NF4", "group_size": 64, "calibration": tmp_path / "short.txt"}
    said = r"^the text has 10 tokens, and a window takes 128; give more text, or a smaller context$"
    with pytest.raises(UsageError, match=said):
        run(language, tmp_path / "out", **options)
    (tmp_path / "latin1.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidFileError, match=r"latin1\.txt: not UTF-8 at offset 3; convert it to UTF-8$"):
        run(language, tmp_path / "out", **{**options, "calibration": tmp_path / "latin1.txt"})


def test_a_graph_with_corrections_runs_but_is_no_model_of_its_family(language: Path, tmp_path: Path):
    (tmp_path / "text.txt").write_text(sample.heldout_text()[:2000])
    written = run(
        language, tmp_path / "out", mode="INT4_SYM", group_size=64, lora_correction=True, lora_rank=4, context=32,
        calibration=tmp_path / "text.txt", subset_size=2, ignored={"patterns": [r".*layers\.[12].*"]},
    )  # fmt: skip
    with pytest.raises(
        UnsupportedModelError, match=r"its graph has the matrix matmul\.\d+_lora_A, which llama does not h"
    ):
        _ = written.model

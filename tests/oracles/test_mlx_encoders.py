"""Encoders in MLX: operations against numpy's, transformers' states pooled, and what an encoder does not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import family_oracles as oracles
import mlx.core as mx
import numpy as np
import pytest
import transformers
from encoders import CONFIGS, QUANTIZED
from mlx.utils import tree_flatten
from test_embeddings import MINILM, MODES, TEXTS, TOLERANCE, minilm, modules, states_of, unit, vectors  # noqa: F401

import edgekit
from edgekit.architectures.forward import Transformer
from edgekit.architectures.ops import Recorder
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import EncodedTensor
from edgekit.testing.operations import OpsSubject, ops_checks
from edgekit_mlx.library import from_mlx, to_mlx
from edgekit_mlx.module import load, load_decoder
from edgekit_mlx.ops import AVAILABLE, MlxOps, leaves, modules_of

named = pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("qwen3")])


def compute(program, weights: Mapping[str, np.ndarray], steps: Sequence) -> list[np.ndarray]:
    """A program in MLX, on the CPU, step by step."""
    recorder = Recorder()
    program(recorder, [object()] * len(steps[0][1]))
    products = {f"{call.arguments[0]}.weight" for call in recorder.calls if call.operation == "product"}
    # A matrix of one row, which a check gives as a vector.
    weights = {name: np.atleast_2d(values) if name in products else values for name, values in weights.items()}
    weights = {f"{name}.weight" if name == "sinks" else name: values for name, values in weights.items()}
    held = {}
    if weights:
        root = modules_of([(name, values.shape) for name, values in weights.items()], recorder.calls)
        root.load_weights([(name, to_mlx(values)) for name, values in weights.items()], strict=True)
        held = leaves(root)
    found, past, seen = [], {}, 0
    with mx.stream(mx.cpu):
        for tokens, values in steps:
            ops = MlxOps(held, mx.array(tokens), seen, past)
            found.append(np.array(program(ops, [mx.array(x) for x in values])))
            seen += tokens.shape[1]
    return found


@ops_checks(OpsSubject("mlx", AVAILABLE, compute))
def test_operations(check):
    check()


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """For a configuration: the directory, and the embedding that transformers' states make."""

    @cache
    def made(name: str):
        config, mode, dense = CONFIGS[name]
        folder = tmp_path_factory.mktemp(name) / "hf"
        states = states_of(oracles.saved_model(config, folder, kind=transformers.AutoModel))
        return folder, unit(modules(folder, mode, dense, MODES[mode](states)))

    return made


@named
def test_the_directory_is_the_same_model_and_goes_back(case, name, tmp_path):
    folder, embedding = case(name)
    source = edgekit.open(folder)
    artifact = edgekit.convert(source, tmp_path / "mlx", format="mlx")
    opened = edgekit.open(artifact.path)
    assert (opened.format, opened.model.config) == ("mlx", source.model.config)
    for role, tensor in source.model.tensors.items():
        np.testing.assert_array_equal(opened.model.tensors[role].float32(), tensor.float32(), err_msg=role)
    back = edgekit.convert(opened, tmp_path / "back", format="hf")
    # Measured: at most 3e-7.
    for each, runtime in ((opened, "mlx"), (back, "numpy")):
        with edgekit.load(each, runtime=runtime) as model:
            assert np.abs(model.embed(oracles.TOKENS.tolist()) - embedding).max() < TOLERANCE


@pytest.mark.parametrize("family", QUANTIZED)
@pytest.mark.parametrize("exact", [False, True])
def test_quantized_weights_stay_quantized(family, exact, tmp_path):
    folder = tmp_path / "hf"
    oracles.saved_model(QUANTIZED[family], folder, kind=transformers.AutoModel)
    made = edgekit.quantize(folder, "4bit", to=tmp_path / "mlx", format="mlx")
    encoded = [name for name, tensor in made.tensors.items() if isinstance(tensor, EncodedTensor)]
    assert encoded
    wanted = Transformer(made.model).hidden(oracles.TOKENS)
    loaded = load(made, "float32", decoded=exact)
    assert loaded.quantized == (0 if exact else len(encoded))
    kinds = {type(module).__name__ for module in leaves(loaded.module).values()}
    assert {"QuantizedLinear", "QuantizedEmbedding"} <= kinds or exact
    # Measured: at most 3e-6.
    assert oracles.relative(from_mlx(loaded.states(mx.array(oracles.TOKENS[None])))[0], wanted) < TOLERANCE
    assert not [name for name, _ in tree_flatten(loaded.module.parameters()) if name.endswith("scales")] or not exact


def test_a_gguf_file_is_converted(case, tmp_path):
    folder, embedding = case("embedding_gemma-dense")
    file = edgekit.convert(folder, tmp_path / "model.gguf", dtype="F32")
    artifact = edgekit.convert(file, tmp_path / "mlx", format="mlx")
    with edgekit.load(artifact, runtime="mlx") as model:
        assert np.abs(model.embed(oracles.TOKENS.tolist()) - embedding).max() < TOLERANCE


@pytest.mark.parametrize("name", ["bert-mean", "embedding_gemma-mean"])
def test_an_encoder_predicts_nothing(case, name, tmp_path):
    folder, _ = case(name)
    notes: list[str] = []
    artifact = edgekit.convert(folder, tmp_path / "mlx", format="mlx", notes=notes)
    assert any("mlx-lm has no encoders: run this" in note for note in notes)
    with edgekit.load(artifact, runtime="mlx") as model:
        for ask in (model.logits, model.tokens, model.prefill):
            with pytest.raises(UnsupportedModelError, match="predicts no next tokens; use embed"):
                ask([1, 2])


def test_texts(minilm, vectors, tmp_path):  # noqa: F811
    artifact = edgekit.convert(minilm, tmp_path / "mlx", format="mlx")
    with edgekit.load(artifact, runtime="mlx") as model:
        for text, vector in zip(TEXTS, vectors, strict=True):
            assert np.abs(model.embed(text) - vector).max() < 1e-5


def test_it_is_not_trained_or_learned_from(case):
    folder, _ = case("bert-mean")
    with pytest.raises(UnsupportedModelError, match="predicts no next tokens; use embed"):
        load_decoder(edgekit.open(folder))

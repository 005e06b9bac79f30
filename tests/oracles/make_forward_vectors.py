"""Writes tests/core/vectors/forward.json: what transformers computes for a small random model of each family.

    python tests/oracles/make_forward_vectors.py
    python tests/oracles/make_forward_vectors.py qwen3_moe    that family's file in tests/core/vectors/families alone

The configurations are here, the weights come from `edgekit.testing.models.random_hf_tensors`, and the file
says with which versions it was made. `test_forward_transformers.py` compares with the library itself.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import encoders
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from edgekit.architectures.hf import config_from_hf
from edgekit.testing.models import random_hf_tensors

TARGET = Path(__file__).parents[1] / "core" / "vectors" / "forward.json"
FAMILIES = TARGET.parent / "families"
TOKENS = [3, 17, 38, 1, 22, 9, 31, 5, 12, 27, 0, 39, 8, 14, 25, 2, 33, 19, 7, 11, 29, 4, 36, 16]

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "long_factor": [1.5, 2.0, 4.0, 9.0, 12.0, 17.0],
    "short_factor": [1.0, 1.1, 1.2, 1.4, 1.7, 2.0],
}
#: name -> config.json; both of transformers' dialects occur.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **SIZES},
    "llama-biases-tied": {
        "model_type": "llama",
        **SIZES,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "head_dim": 12,
        "num_key_value_heads": 1,
    },
    "llama-codellama": {
        "model_type": "llama",
        **SIZES,
        "rope_theta": 1e6,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-2,
    },
    "llama-linear": {"model_type": "llama", **SIZES, "rope_scaling": {"type": "linear", "factor": 2.5}},
    "llama-dynamic": {
        "model_type": "llama",
        **SIZES,
        "max_position_embeddings": 20,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    },
    "llama-llama3": {
        "model_type": "llama",
        **SIZES,
        "hidden_size": 64,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "rope_theta": 500.0,
    },
    "llama-yarn": {
        "model_type": "llama",
        **SIZES,
        "hidden_size": 64,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "beta_fast": 2,
            "beta_slow": 0.5,
        },
    },
    "mistral": {"model_type": "mistral", **SIZES, "sliding_window": None, "head_dim": 16},
    "mistral-window": {"model_type": "mistral", **SIZES, "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", **SIZES, "tie_word_embeddings": True},
    "qwen2-window": {
        "model_type": "qwen2",
        **SIZES,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3", **SIZES, "head_dim": 16, "attention_bias": True},
    "qwen3-window-yarn": {
        "model_type": "qwen3",
        **SIZES,
        "head_dim": 16,
        "use_sliding_window": True,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_theta": 1000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 2.0, "mscale_all_dim": 1.0},
    },
    "phi3": {"model_type": "phi3", **SIZES, "pad_token_id": 0, "sliding_window": 9},
    "phi3-longrope-short": {
        "model_type": "phi3",
        **SIZES,
        "hidden_size": 64,
        "pad_token_id": 0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 32,
        "rope_scaling": LONGROPE,
    },
    "phi3-longrope-long": {
        "model_type": "phi3",
        **SIZES,
        "hidden_size": 64,
        "pad_token_id": 0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 16,
        "rope_scaling": {**LONGROPE, "attention_factor": 1.3},
    },
    "gemma": {"model_type": "gemma", **SIZES, "head_dim": 10, "hidden_act": "gelu"},
    "gemma2": {
        "model_type": "gemma2",
        **SIZES,
        "head_dim": 16,
        "sliding_window": 5,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 20.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        **SIZES,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 24,
        "rope_theta": 10_000.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma3-untied-softcap": {
        "model_type": "gemma3_text",
        **SIZES,
        "head_dim": 16,
        "sliding_window": 4,
        "tie_word_embeddings": False,
        "final_logit_softcapping": 5.0,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
}


def transformers_model(config: dict[str, Any], seed: int = 0) -> torch.nn.Module:
    """transformers' model of that config.json, in float32 with eager attention, with edgekit's random weights."""
    parsed = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
    model = transformers.AutoModelForCausalLM.from_config(parsed, attn_implementation="eager", dtype=torch.float32)
    ours = random_hf_tensors(config_from_hf(config, "test"), seed)
    state = {name: torch.from_numpy(tensor.read()) for name, tensor in ours.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= ({"lm_head.weight"} if model.config.tie_word_embeddings else set()), missing
    model.tie_weights()
    return model.eval()


def transformers_logits(model: torch.nn.Module, tokens: Any) -> np.ndarray:
    """Logits, float32 [batch, n, vocab], of tokens [batch, n]."""
    with torch.no_grad():
        return model(torch.from_numpy(np.atleast_2d(tokens).astype(np.int64)), use_cache=False).logits.numpy()


def vectors() -> dict[str, Any]:
    cases = {}
    for name, config in CONFIGS.items():
        logits = transformers_logits(transformers_model(config), TOKENS)[0]
        last = [float(f"{value:.7g}") for value in logits[-1]]
        cases[name] = {"config": config, "scale": float(np.abs(logits).max()), "last": last}
    return {
        "provenance": {
            "made_by": "tests/oracles/make_forward_vectors.py",
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "settings": "float32, eager attention, one thread, no cache",
            "weights": "edgekit.testing.models.random_hf_tensors(config, seed=0)",
            "last": "logits after the last token, seven digits; scale: largest magnitude over all positions",
        },
        "tokens": TOKENS,
        "cases": cases,
    }


def family_vectors(path: Path) -> dict[str, Any]:
    """What transformers computes for the configurations that the tests of a family have, of the directory we write."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases = {}
    for name, config in module.CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            logits = _of_our_directory(config, Path(folder))
        last = [float(f"{value:.7g}") for value in logits[-1]]
        cases[name] = {"config": config, "scale": float(np.abs(logits).max()), "last": last}
    provenance = {
        "made_by": f"tests/oracles/make_forward_vectors.py {path.stem}",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "weights": "edgekit.testing.models.random_hf_tensors(config, seed=0)",
    }
    return {"provenance": provenance, "tokens": TOKENS, "cases": cases}


def _of_our_directory(config: dict[str, Any], folder: Path) -> np.ndarray:
    ours = random_hf_tensors(config_from_hf(config, "test"))
    save_file({name: tensor.read() for name, tensor in ours.items()}, folder / "model.safetensors", {"format": "pt"})
    values = {key: value for key, value in config.items() if key != "model_type"}
    parsed = transformers.AutoConfig.for_model(config["model_type"], **values)
    parsed.save_pretrained(folder)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return transformers_logits(model.eval(), TOKENS)[0]


def encoder_vectors() -> dict[str, Any]:
    """The last of transformers' states for the configurations of embedding models."""
    cases = {}
    for name, (config, _, _) in encoders.CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            states = _states_of_our_directory(config, Path(folder))
        last = [float(f"{value:.7g}") for value in states[-1]]
        cases[name] = {"config": config, "scale": float(np.abs(states).max()), "last": last}
    provenance = {
        "made_by": "tests/oracles/make_forward_vectors.py encoders",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "weights": "edgekit.testing.models.random_hf_tensors(config, seed=0)",
        "last": "the last state, seven digits; scale: largest magnitude of all states",
    }
    return {"provenance": provenance, "tokens": TOKENS, "cases": cases}


@torch.no_grad()
def _states_of_our_directory(config: dict[str, Any], folder: Path) -> np.ndarray:
    ours = random_hf_tensors(config_from_hf(config, "test"))
    save_file({name: tensor.read() for name, tensor in ours.items()}, folder / "model.safetensors", {"format": "pt"})
    values = {key: value for key, value in config.items() if key != "model_type"}
    transformers.AutoConfig.for_model(config["model_type"], **values).save_pretrained(folder)
    options = {"add_pooling_layer": False} if config["model_type"] == "bert" else {}
    model, info = transformers.AutoModel.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True, **options
    )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model.eval()(torch.tensor([TOKENS])).last_hidden_state[0].numpy()


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        path = FAMILIES / f"{name}.json"
        if name == "encoders":
            path, found = TARGET.with_name("encoders.json"), encoder_vectors()
        else:
            found = family_vectors(Path(__file__).with_name("families") / f"{name}.py")
        path.write_text(json.dumps(found).replace('}, "', '},\n"').replace('"cases": {', '"cases": {\n') + "\n")
        print(f"{path}: {path.stat().st_size} bytes")
    if sys.argv[1:]:
        return
    TARGET.parent.mkdir(exist_ok=True)
    lines = json.dumps(vectors()).replace('}, "', '},\n"').replace('"cases": {', '"cases": {\n')
    TARGET.write_text(lines + "\n")
    print(f"{TARGET}: {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()

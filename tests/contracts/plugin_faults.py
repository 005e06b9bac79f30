"""Faulty plugins: what is wrong, the files that say it, the check that names it, and words of its message.

`put` makes each of them a distribution of its own, as pip would.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from edgekit.testing import plugins as plugin_kit
from edgekit.testing import run_plugin_checks

#: An import that keeps a processor busy for 0.3 s.
SLOW = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end:\n    pass\n"
GOOD = """
import edgekit
edgekit_api = (1, 0)

@edgekit.hookimpl
def edgekit_register_quantizers(register):
    register("affine:int4-sym-g32", "{module}.native:Int4", claim="exact")
"""
NATIVE = """
import edgekit as ek
from edgekit.reference import Traits

class Int4:
    traits = Traits()

    def encode(self, x, importance=None):
        return ek.encode(x, "affine:int4-sym-g32", backend="reference").parts
"""
FAMILY = """
import edgekit
edgekit_api = (1, 0)

@edgekit.hookimpl
def edgekit_register_families(register):
    register("upsilon", "{module}.native:Upsilon")
"""
#: A Llama under another name; a fault changes a line, or adds methods at the end.
FAMILY_NATIVE = """
import attrs
from edgekit.architectures.decoder import COMMON, LAYER, Decoder

class Upsilon(Decoder):
    name = "upsilon"
    model_types = ("upsilon",)
    hf_class = "UpsilonForCausalLM"
    apart = "nothing"
    defaults = COMMON | {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    }
"""


def family(*replaced: str, more: str = "") -> dict[str, str]:
    """The files of a plugin that brings a family, with a text replaced by another or methods added."""
    return {"light": FAMILY, "native": (FAMILY_NATIVE.replace(*replaced) if replaced else FAMILY_NATIVE) + more}


METADATA = """Metadata-Version: 2.1
Name: edgekit-{name}
Version: 1.0
Summary: A plugin for the tests
License-Expression: Apache-2.0
Requires-Python: >=3.11
Requires-Dist: edgekit-core
"""


def put(folder: Path, name: str, light: str = GOOD, native: str = NATIVE, metadata: str = METADATA) -> str:
    """Write a plugin's files and metadata into a folder of the path; gives its name."""
    for path, text in files(name, light, native, metadata).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
    return name


def files(name: str, light: str = GOOD, native: str = NATIVE, metadata: str = METADATA) -> dict[str, str]:
    """A plugin as it is installed: path to content. Its light module is a package, with `native` inside."""
    module = f"edgekit_{name.replace('-', '_')}"
    info = f"{module}-1.0.dist-info"
    return {
        f"{module}/__init__.py": textwrap.dedent(light).replace("{module}", module),
        f"{module}/native.py": textwrap.dedent(native),
        f"{info}/METADATA": metadata.replace("{name}", name),
        f"{info}/entry_points.txt": f"[edgekit]\n{name} = {module}\n",
    }


def first_failure(name: str):
    """The first check that fails, as `edgekit verify` would name it."""
    for check in plugin_kit.KIT.checks:
        (result,) = run_plugin_checks(name, checks=[check])
        if not result.ok:
            return result
    return None


FAULTS = {
    "no contract version": ({"light": GOOD.replace("edgekit_api = (1, 0)", "")}, "check_api_version", "does not state"),
    "a newer contract": ({"light": GOOD.replace("(1, 0)", "(9, 0)")}, "check_api_version", "upgrade edgekit"),
    "raises on import": ({"light": GOOD + "raise OSError('no GPU')"}, "check_loaded", "OSError: no GPU"),
    "a hook of another signature": (
        {"light": GOOD.replace("(register):", "(register, frobnicate):")}, "check_loaded", "frobnicate",
    ),
    "no licence": ({"metadata": METADATA.replace("License-Expression: Apache-2.0\n", "")}, "check_metadata", "licence"),
    "does not depend on edgekit": (
        {"metadata": METADATA.replace("Requires-Dist: edgekit-core\n", "")}, "check_metadata", "does not depend on edgekit",
    ),
    "registers nothing": ({"light": "edgekit_api = (1, 0)\n"}, "check_registrations", "registers nothing"),
    "claims nothing": ({"light": GOOD.replace(', claim="exact"', "")}, "check_loaded", "it states no claim"),
    "a precision that nobody knows": (
        {"light": GOOD.replace("int4-sym-g32", "int4-sym-g32x")}, "check_registrations", "unknown precision",
    ),
    "claims a name twice": (
        {"light": GOOD + '    register("affine:int4-sym-g32", "x:y", claim="exact")\n'}, "check_registrations", "twice",
    ),
    "an object without its role's methods": (
        {"native": NATIVE.replace("def encode", "def quantize")}, "check_targets", "lacks encode",
    ),
    "a target that is not there": ({"native": "class Int8:\n    pass\n"}, "check_targets", "Int4"),
    "a misspelt option": (
        {"light": GOOD.replace(', claim="exact"', ', claim="exact", sped=10')}, "check_loaded", "did you mean 'speed'?",
    ),
    "a speed in words": (
        {"light": GOOD.replace(', claim="exact"', ', claim="exact", speed="10"')}, "check_loaded", "speed='10': takes",
    ),
    "a suffix where a tuple is wanted": (
        {"light": GOOD.replace("quantizers", "formats").replace('claim="exact"', 'suffixes=".x"')},
        "check_loaded", "suffixes='.x': takes a tuple of suffixes",
    ),
    "a command of the core's": (
        {"light": GOOD.replace("quantizers", "commands").replace("affine:int4-sym-g32", "quantize")
            .replace(', claim="exact"', "")},
        "check_loaded", "it would replace edgekit's own command 'quantize'",
    ),
    "a claim that its class contradicts": (
        {"native": NATIVE.replace("    def encode", '    claim = "half a step"\n\n    def encode')},
        "check_targets", "state one claim in both places",
    ),
    "a name that its record contradicts": (
        {"native": NATIVE.replace("    def encode", '    precision = "affine:int8-sym-g32"\n\n    def encode')},
        "check_targets", "calls itself 'affine:int8-sym-g32'; register it under that name",
    ),
    "a family that takes another one's checkpoints": (
        family('("upsilon",)', '("llama",)'), "check_families", "claims model_type 'llama', which another family has",
    ),
    "a family that forgets what it wrote": (
        family(more="""
    def config_to_hf(self, config):
        return {**super().config_to_hf(config), "rms_norm_eps": 1e-3}
"""), "check_families", "reads another configuration from the config.json that it writes itself",
    ),
    "a family with a tensor that no checkpoint has": (
        family(more="""
    def links(self, config, names):
        return super().links(config, names)[:-1]
"""), "check_families", "its links and its blocks disagree on the tensor",
    ),
    "a family that reads one tensor twice": (
        family(more="""
    layer_names = LAYER | {"ffn_up": "mlp.gate_proj"}
"""), "check_families", "two links name the same tensor of a checkpoint",
    ),
    "a light module that imports its heavy one": (
        {"light": "import {module}.native" + GOOD}, "check_light_imports", ".native, which it registers",
    ),
    "slow to import": (
        {"light": SLOW + GOOD}, "check_import_time", "ms are allowed",
    ),
    "imports a framework": ({"light": "import gguf" + GOOD}, ("check_light_imports", "check_import_time"), ""),
    "writes to stdout on import": ({"light": "print('hello')" + GOOD}, "check_silent_import", "hello"),
    "writes to stdout when it is loaded": ({"native": "print('kernel')\n" + NATIVE}, "check_silent_import", "kernel"),
    "calls home": (
        {"native": """
         import socket
         try:
             socket.create_connection(("127.0.0.1", 9), timeout=1)
         except OSError:
             pass
         """ + NATIVE.replace("\n", "\n         ")}, "check_no_network", "uses the network",
    ),
    "writes outside its directory": (
        {"native": "import pathlib; pathlib.Path(__file__ + '.log').write_text('x')\n" + NATIVE},
        "check_no_writes", ".log",
    ),
}  # fmt: skip

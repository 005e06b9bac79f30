"""The checked options of the runtime."""

from __future__ import annotations

import os
from typing import Any

import attrs

from edgekit.errors import ResourceError, UsageError
from edgekit_olive.library import FATAL_ONLY, onnxruntime

#: Execution providers in order of preference, by the short name of the device.
PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "dml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
#: Providers that ``device="auto"`` selects if they are available: those that can compute any graph.
_AUTOMATIC = ("cuda", "cpu")


@attrs.frozen
class Options:
    """The options of loading a model; see `edgekit_olive.runtime.open_runtime`."""

    device: str = "auto"
    exact: bool = False
    threads: int = 0
    context: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.device != "auto" and self.device not in PROVIDERS:
            raise UsageError(f"device {self.device!r:.80}; choose auto, {', '.join(PROVIDERS)}")
        if type(self.exact) is not bool:
            raise UsageError(f"exact {self.exact!r:.80}; choose true or false")
        refuse_wrong(self.threads, self.context)

    def providers(self) -> list[str]:
        """Return the execution providers to request, with the CPU last.

        Raises:
            ResourceError: the installed onnxruntime does not have the provider.
        """
        available = onnxruntime().get_available_providers()
        if self.device == "auto":
            chosen = [PROVIDERS[name] for name in _AUTOMATIC if PROVIDERS[name] in available]
        else:
            chosen = [PROVIDERS[self.device]]
            if chosen[0] not in available:
                raise ResourceError(
                    f"device {self.device}: the installed onnxruntime has {', '.join(available)}; install one with it, "
                    "such as onnxruntime-gpu, or choose device=cpu"
                )
        return chosen if chosen[-1] == PROVIDERS["cpu"] else [*chosen, PROVIDERS["cpu"]]

    def session(self) -> Any:
        """Return the options of a session."""
        made = onnxruntime().SessionOptions()
        made.log_severity_level = FATAL_ONLY
        made.intra_op_num_threads = self.threads or os.cpu_count() or 1
        if self.exact:
            # A DequantizeLinear before a MatMul becomes MatMulNBits, which by default rounds activations to 8 bits.
            made.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
        return made


def refuse_wrong(threads: object, context: object) -> None:
    """Raise `UsageError` for a number of threads, or a largest number of tokens, that is out of range."""
    if type(threads) is not int or threads < 0:
        raise UsageError(f"threads {threads!r:.80}; choose 0 (as many as there are cores) or more")
    if context is not None and (type(context) is not int or context < 1):
        raise UsageError(f"context {context!r:.80}; choose 1 or more")


__all__ = ["PROVIDERS", "Options", "refuse_wrong"]

"""Matrix products with weights that oneDNN has laid out for itself, once, instead of anew in every product.

On a CPU this is two to three times as fast as `torch.nn.functional.linear` for the few rows of a decode step. The two
operators are those that torch's own compiler emits for frozen models; they have no public name, so their absence is not
an error.
"""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED_DTYPES = (torch.float32, torch.bfloat16)
OPERATORS = ("_linear_pointwise", "_reorder_linear_weight")


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of this kind can be packed here."""
    if device.type != "cpu" or dtype not in PACKED_DTYPES or not _has_operators():
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _has_operators() -> bool:
    return torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)


class DenseLinear:
    """x W + b."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight  # (out, in)
        self.bias = bias  # (out,)

    def __call__(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight, self.bias)

    def plus(self, states: Tensor, more: Tensor) -> Tensor:
        return more + F.linear(states, self.weight, self.bias)


class PackedLinear(nn.Module):
    """The same over a packed copy of the weight. Cannot be saved, moved or trained."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """(out, in) and (out,), which the caller may drop."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        with torch.inference_mode():
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
            self._bias = None if bias is None else bias.detach().clone()

    def forward(self, states: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.default(states, self._weight, self._bias, "none", [], "")
        return out

    def plus(self, states: Tensor, more: Tensor) -> Tensor:
        """(..., out) `more` added to it, before rounding."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, more, self._weight, self._bias, "add")
        return out


def give_back_memory() -> None:
    """To the system, what the dense weights took: glibc keeps freed pieces below its threshold for mapping. Elsewhere
    nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def pack_linears(module: nn.Module) -> None:
    """Replace every nn.Linear below `module` by a packed one, where that can be done; the dense weights go."""
    for name, child in module.named_children():
        if type(child) is nn.Linear and can_pack(child.weight.device, child.weight.dtype):
            setattr(module, name, PackedLinear(child.weight, child.bias))
        else:
            pack_linears(child)

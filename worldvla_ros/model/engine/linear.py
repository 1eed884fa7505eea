# SPDX-License-Identifier: Apache-2.0
"""Matrix products with weights [out, in]: as they are, or as 8-bit floats."""

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.errors import InferenceError

FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(FP8).max
_SMALLEST_SCALE = 1e-12  # of an all-zero row


class DenseLinear(nn.Module):
    """y = x W^T in the number format of the weights."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return F.linear(x, self.weight)


def require_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise InferenceError unless a CUDA device multiplies such activations in 8 bits."""
    if dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) < (8, 9):
        raise InferenceError(
            f"weights 'fp8' need a GPU of compute capability 8.9 and bfloat16 activations, got "
            f"{torch.cuda.get_device_name(device)} and {dtype}; use the weights 'dense'")


class Fp8Linear(nn.Module):
    """y = x W^T with both sides in 8 bits (e4m3): a scale per output channel and per row of x.

    Sums are in float32. On a GPU this needs compute capability 8.9 and bfloat16 activations;
    elsewhere the product of the same 8-bit values is taken in float32, for tests.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        if weight.is_cuda:
            require_fp8(weight.device, weight.dtype)
        self.weight, scale = _to_fp8(weight)
        self.scale = scale.t().contiguous()  # [1, out]

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        rows, row_scale = _to_fp8(x.flatten(0, -2))
        if x.is_cuda:
            out = torch._scaled_mm(rows, self.weight.t(), row_scale, self.scale,
                                   out_dtype=x.dtype, use_fast_accum=True)
        else:
            out = rows.float() @ self.weight.float().t() * row_scale * self.scale
        return out.to(x.dtype).unflatten(0, x.shape[:-1])


def _to_fp8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [n, m] in 8 bits and their scales float32 [n, 1]; their product is the rows."""
    exact = rows.float()
    scale = (exact.abs().amax(-1, keepdim=True) / _FP8_MAX).clamp(min=_SMALLEST_SCALE)
    return (exact / scale).clamp(-_FP8_MAX, _FP8_MAX).to(FP8), scale

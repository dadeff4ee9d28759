"""Several processes, the ranks, that train together: each has some images of every batch.

A loss is a sum over the images of the whole batch, divided by a count over the whole batch. Every rank computes its own
part of the sum; `Ranks.total` and `Ranks.count` add up those of all. The gradient of a rank is that of its own part, so
that the sum of the gradients over the ranks is the gradient of the whole batch in one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.overrides import TorchFunctionMode


class Disconnected(RuntimeError):
    """Another rank has ended, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """How many processes share each batch; 1: the whole batch is here, and nothing is exchanged.

    They are the ranks of torch's default process group, and call every method in the same order.

    >>> import torch
    >>> Ranks().total(torch.ones(3)), Ranks().count(7)
    (tensor([1., 1., 1.]), 7)
    """

    n: int = 1

    def total(self, values: Tensor) -> Tensor:
        """The sum over all ranks of a float tensor, with the gradient of this rank's own part."""
        if self.n == 1:
            return values
        own = values.detach()
        return values + (_summed(own.clone()) - own)

    def count(self, number: int) -> int:
        """The sum over all ranks."""
        if self.n == 1:
            return number
        return int(_summed(torch.tensor(number, dtype=torch.int64)))

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """The largest over all ranks of each number."""
        if self.n == 1:
            return list(numbers)
        return _all_reduce(torch.tensor(numbers, dtype=torch.int64), distributed.ReduceOp.MAX).tolist()

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their sum over all ranks, in one exchange.

        A parameter that no rank used has none afterwards, either.
        """
        if self.n == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        used = torch.tensor([p.grad is not None for p in trained], dtype=torch.float32, device=trained[0].device)
        parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained]
        *parts, used = _summed(torch.cat([*parts, used])).split([p.numel() for p in trained] + [len(trained)])
        for parameter, part, is_used in zip(trained, parts, used.tolist(), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape)) if is_used else None

    def shared_batch_norm(self) -> AbstractContextManager[object]:
        """While the block runs, batch norm in training uses the statistics of the images of all ranks."""
        return nullcontext() if self.n == 1 else _SharedBatchNorm()


ALONE = Ranks()


def _all_reduce(values: Tensor, operation: Any) -> Tensor:
    try:
        distributed.all_reduce(values, operation)
    except RuntimeError as error:
        raise Disconnected(str(error)) from error
    return values


def _summed(values: Tensor) -> Tensor:
    return _all_reduce(values, distributed.ReduceOp.SUM)


class _SharedBatchNorm(TorchFunctionMode):
    """Replaces the batch norm of all layers, whatever their class (encoders of timm have their own).

    torch's `SyncBatchNorm` is for CUDA only.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of FloatTensor[B,C,...]; B may be 0 where other ranks have more."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    weight = x.new_ones(x.shape[1], dtype=torch.float32) if weight is None else weight
    bias = torch.zeros_like(weight) if bias is None else bias
    normed, mean, var, n = _BatchNorm.apply(x, weight, bias, eps)  # type: ignore[misc]
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (n / (n - 1).clamp(min=1))).to(running_var.dtype), momentum)
    return normed


class _BatchNorm(torch.autograd.Function):
    """Batch norm (Ioffe & Szegedy 2015) over the images of all ranks; one exchange forward, one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        values, n = x.float(), x.numel() // x.shape[1]
        dims = [dim for dim in range(x.ndim) if dim != 1]
        var, mean = values.new_zeros(2, x.shape[1]) if n == 0 else torch.var_mean(values, dims, correction=0)
        # Sums of squares in float64, whose difference is exact enough.
        var, mean = var.double(), mean.double()
        sums = _summed(torch.cat([n * mean, n * (var + mean**2), mean.new_tensor([n])]))
        total, squares, n_all = sums.split([x.shape[1], x.shape[1], 1])
        mean = total / n_all
        var = (squares / n_all - mean**2).clamp(min=0)
        as_float = mean.float(), var.float()
        ctx.save_for_backward(x, weight, *as_float, n_all)
        ctx.eps = eps
        normed = F.batch_norm(values, *as_float, weight.float(), bias.float(), training=False, eps=eps)
        ctx.mark_non_differentiable(mean, var, n_all)
        return normed.to(x.dtype), mean, var, n_all

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, mean, var, n_all = ctx.saved_tensors
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        gradient, scale = gradients[0].float(), torch.rsqrt(var + ctx.eps)
        normed = (x.float() - mean.view(shape)) * scale.view(shape)
        own = torch.stack([gradient.sum(dims), (gradient * normed).sum(dims)])
        of_bias, of_weight = _summed(own.double()) / n_all
        centred = gradient - of_bias.float().view(shape) - normed * of_weight.float().view(shape)
        of_x = centred * (weight.float() * scale).view(shape)
        return of_x.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None

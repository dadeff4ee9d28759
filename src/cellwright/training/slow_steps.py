"""A warning for steps that take far longer than their arithmetic, with the likely cause."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cellwright.core.text import count
from cellwright.training.precision import is_bf16_fast

_FACTOR = 10  # on a quiet machine, steps of both families take 2 to 4 times as long as the estimate
_SHORT_S = 1.0  # nobody waits for such a step
_N_STEPS = 3  # in a row: the first one of a process prepares kernels
_MOST_CORES = 4  # more of them rarely make a step faster in proportion
_BUSY = 0.6  # of the time of its cores that a training gets on a busy machine, at most
_FAULTS_PER_S = 20  # pages read from the disk
_SIDE = 256  # of the matrices that are multiplied to measure the rate: 0.4 to 30 ms each
_COUNTED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class Usage:
    """What a process has used so far: seconds, seconds of all its cores, pages read from the disk."""

    wall_s: float
    cpu_s: float
    faults: int

    @staticmethod
    def now() -> Usage:
        """The usage at this moment."""
        if sys.platform == "win32":
            return Usage(time.perf_counter(), time.process_time(), 0)
        import resource

        return Usage(time.perf_counter(), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_majflt)

    def since(self, start: Usage) -> Usage:
        """What was used between ``start`` and this moment."""
        return Usage(self.wall_s - start.wall_s, self.cpu_s - start.cpu_s, self.faults - start.faults)


@dataclass(frozen=True)
class Setting:
    """How a training computes: bf16 or not and whether that is slow here, threads, and cores that it may use."""

    is_slow_bf16: bool
    threads: int
    cores: int

    @staticmethod
    def of(precision: str, threads: int, device: torch.device) -> Setting:
        """The setting of a training on this machine."""
        is_slow = precision == "bf16" and not is_bf16_fast(device)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return Setting(is_slow, threads, cores)


class StepWatch:
    """Warns once when three steps in a row take ten times as long as the arithmetic of the network should.

    The estimate is three times the operations of the forward pass (the backward pass takes twice as many), counted in
    the first step, at the rate at which this machine multiplies matrices in float32.

    setting: None for a training that is not watched, as on a GPU, where starting kernels may take longer than they do.
    rate: measures operations per second on one core. usage: replaced in tests, as ``rate`` is.
    """

    def __init__(
        self,
        network: nn.Module,
        setting: Setting | None,
        warn: Callable[[str], None],
        *,
        rate: Callable[[], float] | None = None,
        usage: Callable[[], Usage] = Usage.now,
    ) -> None:
        self._network, self._setting, self._warn = network, setting, warn
        self._rate, self._usage = rate or multiplication_rate, usage
        self._expected_s: float | None = None
        self._recent: deque[Usage] = deque(maxlen=_N_STEPS)

    @contextmanager
    def step(self) -> Iterator[None]:
        """The computation of a step."""
        if self._setting is None:
            yield
            return
        start = self._usage()
        if self._expected_s is None:
            with counted_operations(self._network) as operations:
                yield
            used = self._usage().since(start)
            cores = min(self._setting.threads, self._setting.cores, _MOST_CORES)
            self._expected_s = 3 * sum(operations) / (self._rate() * cores)
        else:
            yield
            used = self._usage().since(start)
        self._recent.append(used)
        taken_s = min(recent.wall_s for recent in self._recent)
        is_slow = taken_s > max(_FACTOR * self._expected_s, _SHORT_S)
        if is_slow and len(self._recent) == _N_STEPS:
            self._warn(
                f"warning: a step takes {taken_s:.3g} s, but its arithmetic should take about {self._expected_s:.2g} s "
                f"on this machine; {likely_cause(self._setting, self._recent)}"
            )
            self._setting = None


def likely_cause(setting: Setting, recent: Sequence[Usage]) -> str:
    """What makes steps slow, as far as it shows, and what to do."""
    wall_s = sum(used.wall_s for used in recent)
    share = sum(used.cpu_s for used in recent) / (wall_s * min(setting.threads, setting.cores))
    if setting.is_slow_bf16:
        return "this processor has no instructions for bf16: train with train.precision=auto"
    if setting.threads > setting.cores:
        return (
            f"{setting.threads} threads share {count(setting.cores, 'core')}: train with train.threads={setting.cores}"
        )
    if sum(used.faults for used in recent) > _FAULTS_PER_S * wall_s:
        return "memory is short, and data are read back from the disk: lower train.batch_size or augment.crop_px"
    if share < _BUSY:
        return f"it gets only {share:.0%} of the time of its cores: other programs keep this machine busy"
    return "no cause was found: compare with another machine, or with train.precision=float32"


@contextmanager
def counted_operations(network: nn.Module) -> Iterator[list[float]]:
    """The floating-point operations of every convolution and linear layer that ``network`` computes in the block."""
    operations: list[float] = []

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        of_each = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        operations.append(2.0 * of_each.numel() * weight[0].numel())

    hooks = [layer.register_forward_hook(add) for layer in network.modules() if isinstance(layer, _COUNTED)]
    try:
        yield operations
    finally:
        for hook in hooks:
            hook.remove()


def multiplication_rate() -> float:
    """Floating-point operations per second of one core in float32 matrix products: the best of a few."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right = torch.ones(_SIDE, _SIDE), torch.ones(_SIDE, _SIDE)
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return 2 * _SIDE**3 / max(min(seconds), 1e-9)

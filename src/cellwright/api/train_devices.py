"""Training on several devices: which ones, and what the other processes do; see `training.distributed`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cellwright.config.conventions import CONVENTIONS
from cellwright.config.recipe import Recipe
from cellwright.core.dataset import Dataset, Sample
from cellwright.core.errors import UsageError
from cellwright.data.images.reading import Reading

if TYPE_CHECKING:
    import torch

    from cellwright.data.loader import TrainingLoader
    from cellwright.models.contract import Network
    from cellwright.training.distributed import Team

_CODE = "from cellwright.api.train_devices import follow; follow({device!r})"


@dataclass(frozen=True)
class Job:
    """What a member trains: rank 0 sends it, and the weights later."""

    recipe: Recipe
    samples: tuple[Sample, ...]
    n_classes: int
    reading: Reading


@contextmanager
def team_of(device: str, devices: int | None) -> Iterator[Team]:
    """The processes that train on ``devices`` devices, as rank 0 sees them; None: one, or as torchrun has started.

    Raises `UsageError` if there are not so many.
    """
    from cellwright.training.distributed import Place, lead

    place = Place.of_environment()
    if devices is not None and (devices < 1 or (place.n > 1 and devices != place.n)):
        expected = "1 or more" if place.n == 1 else f"{place.n}, the processes that torchrun has started, or None"
        raise UsageError("invalid number of devices", where="`devices`", got=devices, expected=expected)
    n = devices or place.n
    first = device_of(device, n, place.local_rank)
    _check_devices(first, n, is_local=place.n == 1)
    with lead(n, first, _CODE.format(device=device)) as team:
        yield team


def device_of(device: str, n: int, local_rank: int) -> torch.device:
    """The device of one of ``n`` processes. Raises `UsageError` if it cannot be shared or is not available."""
    import torch

    from cellwright.prediction.backends.torch import resolve_device

    chosen = resolve_device(device)
    if n == 1 or chosen == torch.device("cpu"):
        return chosen
    if chosen.type != "cuda" or chosen.index is not None:
        remedy = 'use `device="cuda"` (the variable CUDA_VISIBLE_DEVICES chooses which ones) or `device="cpu"`'
        problem = "several devices are all GPUs from the first one on, or processes on the CPU"
        raise UsageError(problem, where="`device`", got=chosen, remedy=remedy)
    return torch.device("cuda", local_rank)


def _check_devices(first: torch.device, n: int, *, is_local: bool) -> None:
    import torch

    if first.type == "cuda" and is_local and n > torch.cuda.device_count():
        got = f"{n}, where this machine has {torch.cuda.device_count()}"
        remedy = 'use fewer, or several processes on the CPU with `device="cpu"`'
        raise UsageError("there are not so many GPUs", where="`devices`", got=got, remedy=remedy)


def is_member() -> bool:
    """Whether torchrun has started this process for another rank than 0."""
    from cellwright.training.distributed import Place

    return Place.of_environment().rank > 0


def follow(device: str) -> Any:
    """Do what rank 0 sends, run by run, until it ends."""
    from cellwright.training.distributed import END, Place, join

    place = Place.of_environment()
    with join(device_of(device, place.n, place.local_rank)) as team:
        while (job := team.receive()) != END:
            _follow_run(job, team)


def _follow_run(job: Job, team: Team) -> None:
    from cellwright.models.build import network_to_fill
    from cellwright.training.loop import follow as follow_run

    network = network_to_fill(job.recipe, job.n_classes, lambda _: None)
    loader = loader_of(job.recipe, job.samples, network, job.reading, team)
    follow_run(network, loader, job.recipe.train, team.device, team)


def loader_of(
    recipe: Recipe, samples: tuple[Sample, ...] | Dataset, network: Network, reading: Reading, team: Team
) -> TrainingLoader:
    """The batches of a training, as far as this process has them."""
    from cellwright.data.loader import LoaderConfig, TrainingLoader

    config = LoaderConfig(
        input=recipe.input,
        augment=recipe.augment,
        data=recipe.data,
        resize_rule=CONVENTIONS[recipe.conventions].resize_rule,
        stride=network.stride,
        batch_size=recipe.train.batch_size,
        seed=recipe.train.seed,
        reading=reading,
        rank=team.place.rank,
        n_ranks=team.place.n,
    )
    return TrainingLoader(tuple(samples), config)


def threads_of(recipe: Recipe, team: Team) -> int | None:
    """CPU threads of each process: as in the recipe, or an equal share of those of a CPU; None: torch's default."""
    import torch

    shares = team.place.n > 1 and team.device.type == "cpu"
    return recipe.train.threads or (max(torch.get_num_threads() // team.place.n, 1) if shares else None)

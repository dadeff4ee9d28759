"""Training batches as a pure function of the step.

Which samples a step sees, and every random change of them, follow from (seed, step, place in the batch) alone. So the
number of workers, their order, restarts and what was trained before never change a batch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cellwright.config.input import AugmentConfig, DataConfig, InputConfig
from cellwright.core.dataset import Sample
from cellwright.core.errors import CellwrightError, InputError
from cellwright.data.augment import augment
from cellwright.data.decode import (
    DecodeCache,
    Decoded,
    decode_sample,
    frame_of,
    network_pixels,
    trained_classes,
)
from cellwright.data.labels import Labels
from cellwright.data.network_input import ResizeRule
from cellwright.data.sampling import SampleOrder, repeat_factors
from cellwright.ops.batch import Batch, stack_images

# First words of the seeds, so that two kinds of draws never share a stream; 1 is that of `sampling`. (A shorter seed is
# padded with zeros by numpy: [5, 3] and [5, 3, 0] are the same seed.)
_AUGMENT, _MODEL = 2, 3


@dataclass(frozen=True)
class LoaderConfig:
    """All that decides a batch, beside the samples.

    Attributes:
        input: from image to network input.
        augment: random changes.
        data: filters, workers, cache.
        resize_rule: whose rounding ``input.short_side`` follows.
        stride: batches are padded to a multiple of it, px.
        batch_size: images a batch.
        seed: of every draw.
    """

    input: InputConfig
    augment: AugmentConfig
    data: DataConfig
    resize_rule: ResizeRule
    stride: int
    batch_size: int
    seed: int


class TrainingBatches(Dataset):
    """A torch dataset whose item ``step`` is the whole batch of that step.

    An error that the user can mend is returned, not raised: torch would bury its message under a worker's traceback.
    """

    def __init__(self, samples: Sequence[Sample], config: LoaderConfig) -> None:
        self.samples = tuple(samples)
        self.config = config
        self.order = SampleOrder(config.seed, len(self.samples), _repeat_factors(self.samples, config.data))
        shares = max(1, config.data.workers)
        self.cache = DecodeCache(config.data.cache_mb * 2**20 // shares)

    def __getitem__(self, step: int) -> Batch | CellwrightError:
        try:
            return self.batch(step)
        except CellwrightError as error:
            return error

    def batch(self, step: int) -> Batch:
        """The batch of step ``step``. Raises `InputError` naming a sample that cannot be read."""
        config = self.config
        images, labels = [], []
        for place, index in enumerate(self.order.batch(step, config.batch_size)):
            decoded = self._decoded(int(index))
            frame = frame_of(decoded, config.input, config.resize_rule)
            rng = augment_rng(config.seed, step, place)
            pixels, objects = augment(decoded.pixels, decoded.labels, config.augment, rng, frame)
            images.append(torch.from_numpy(network_pixels(pixels, decoded, config.input)))
            labels.append(objects)
        seed = int(np.random.SeedSequence([_MODEL, config.seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return collate(images, labels, stride=config.stride, seed=seed)

    def _decoded(self, index: int) -> Decoded:
        kept = self.cache.get(index)
        if kept is not None:
            return kept
        decoded = decode_sample(self.samples[index], self.config.input, self.config.data)
        self.cache.offer(index, decoded)
        return decoded


def augment_rng(seed: int, step: int, place: int) -> np.random.Generator:
    """The source of the random changes of the sample at ``place`` of the batch of step ``step``."""
    return np.random.default_rng([_AUGMENT, seed, step, place])


def _repeat_factors(samples: Sequence[Sample], data: DataConfig) -> tuple[float, ...] | None:
    """How often an epoch holds each sample; None: once. Reads the objects of all samples if it is asked for."""
    if data.repeat_factor_threshold is None:
        return None
    return repeat_factors((trained_classes(one, data) for one in samples), data.repeat_factor_threshold)


def collate(images: Sequence[Tensor], labels: Sequence[Labels], *, stride: int, seed: int) -> Batch:
    """A `Batch` of FloatTensor[C,h,w] images (any sizes, at least one) and their objects."""
    stacked, image_hws = stack_images(images, stride)
    return Batch(
        images=stacked,
        image_hws=image_hws,
        boxes=[torch.from_numpy(one.boxes) for one in labels],
        class_ids=[torch.from_numpy(one.class_ids) for one in labels],
        ignore=[torch.from_numpy(one.ignore) for one in labels],
        layers=[torch.from_numpy(one.layers) for one in labels],
        layer_of=[torch.from_numpy(one.layer_of) for one in labels],
        seed=seed,
    )


class TrainingLoader:
    """Batches of a training set, from any step on, by ``config.data.workers`` processes."""

    def __init__(self, samples: Sequence[Sample], config: LoaderConfig) -> None:
        if not samples:
            raise InputError(
                "there is nothing to train on",
                got="0 training images",
                expected="at least 1",
                remedy="check --data and its splits with: cellwright data info",
            )
        self.config = config
        self._batches = TrainingBatches(samples, config)

    @property
    def n_samples(self) -> int:
        """Samples of an epoch, at least 1: the training images, more where ``repeat_factor_threshold`` repeats some."""
        return self._batches.order.n_samples

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return self.config.batch_size

    def batches(self, first_step: int, total_steps: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` .. ``total_steps - 1``, in order.

        Raises `InputError` naming a sample that cannot be read, at the step that needs it.
        """
        data = self.config.data
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(first_step, total_steps),
            collate_fn=_as_it_is,
            num_workers=data.workers,
            prefetch_factor=data.prefetch_batches if data.workers else None,
            multiprocessing_context=data.start_method if data.workers else None,
            worker_init_fn=_prepare_worker,
            # Torch draws a seed for its workers, which nothing here uses; its own generator keeps that draw away from
            # the global one.
            generator=torch.Generator(),
        )
        for item in loader:
            if isinstance(item, CellwrightError):
                raise item
            yield item


def _as_it_is(item: Any) -> Any:
    return item


def _prepare_worker(worker: int) -> None:
    # Ctrl-C goes to the whole process group; the training process ends its workers itself, after its checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # OpenCV's thread pool does not survive a fork.
    cv2.setNumThreads(0)

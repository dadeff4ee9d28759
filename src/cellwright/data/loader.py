"""Training batches, as a pure function of the step number.

The samples of a step and all random changes of them depend only on the seed, the step and the position in the batch.
The number of worker processes, their scheduling, restarts and earlier training therefore do not change a batch.
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

from cellwright.config.conventions import ResizeRule
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
from cellwright.data.images.reading import Reading
from cellwright.data.labels import Labels
from cellwright.data.sampling import SampleOrder, repeat_factors
from cellwright.ops.batch import Batch, stack_images

# First words of the seeds, so that different kinds of draws use different random streams; `sampling` uses 1. (numpy
# pads a shorter seed with zeros: [5, 3] and [5, 3, 0] are the same seed.)
_AUGMENT, _MODEL = 2, 3


@dataclass(frozen=True)
class LoaderConfig:
    """Everything that determines a batch, apart from the samples.

    Attributes:
        input: the conversion from image to network input.
        augment: random changes.
        data: filters, worker processes, cache.
        resize_rule: the framework whose resizing is used.
        stride: batches are padded to a multiple of it, in pixels.
        batch_size: images per batch.
        seed: of all random draws.
        reading: which part of each image file is used.
    """

    input: InputConfig
    augment: AugmentConfig
    data: DataConfig
    resize_rule: ResizeRule
    stride: int
    batch_size: int
    seed: int
    reading: Reading = Reading()  # noqa: RUF009 - frozen


class TrainingBatches(Dataset):
    """A torch dataset whose item ``step`` is the complete batch of that step.

    Errors that the user can fix are returned instead of raised, because torch would wrap them in the traceback of a
    worker process.
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
        """The batch of step ``step``. Raises `InputError` that names a sample that cannot be read."""
        config = self.config
        images, labels = [], []
        for position, index in enumerate(self.order.batch(step, config.batch_size)):
            decoded = self._decoded(int(index))
            frame = frame_of(decoded, config.input, config.resize_rule)
            rng = augment_rng(config.seed, step, position)
            pixels, objects = augment(decoded.pixels, decoded.labels, config.augment, rng, frame)
            images.append(torch.from_numpy(network_pixels(pixels, decoded, config.input)))
            labels.append(objects)
        seed = int(np.random.SeedSequence([_MODEL, config.seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return collate(images, labels, stride=config.stride, seed=seed)

    def _decoded(self, index: int) -> Decoded:
        decoded = self.cache.get(index)
        if decoded is None:
            config = self.config
            decoded = decode_sample(self.samples[index], config.input, config.data, config.reading)
            self.cache.offer(index, decoded)
        return decoded


def augment_rng(seed: int, step: int, position: int) -> np.random.Generator:
    """The random generator for augmenting the sample at ``position`` in the batch of step ``step``."""
    return np.random.default_rng([_AUGMENT, seed, step, position])


def _repeat_factors(samples: Sequence[Sample], data: DataConfig) -> tuple[float, ...] | None:
    """The repeat factors of the samples, or None if they are not used. Reads the objects of all samples."""
    if data.repeat_factor_threshold is None:
        return None
    return repeat_factors((trained_classes(sample, data) for sample in samples), data.repeat_factor_threshold)


def collate(images: Sequence[Tensor], labels: Sequence[Labels], *, stride: int, seed: int) -> Batch:
    """A `Batch` from images FloatTensor[C,h,w] of any sizes, at least one, and their objects."""
    stacked, image_hws = stack_images(images, stride)
    return Batch(
        images=stacked,
        image_hws=image_hws,
        boxes=[torch.from_numpy(objects.boxes) for objects in labels],
        class_ids=[torch.from_numpy(objects.class_ids) for objects in labels],
        ignore=[torch.from_numpy(objects.ignore) for objects in labels],
        layers=[torch.from_numpy(objects.layers) for objects in labels],
        layer_of=[torch.from_numpy(objects.layer_of) for objects in labels],
        seed=seed,
    )


class TrainingLoader:
    """Batches of a training set from any step on, prepared by ``config.data.workers`` processes."""

    def __init__(self, samples: Sequence[Sample], config: LoaderConfig) -> None:
        if not samples:
            raise InputError(
                "the training set is empty",
                got="0 training images",
                expected="at least 1",
                remedy="check `data` and its splits with: cellwright data info",
            )
        self.config = config
        self._batches = TrainingBatches(samples, config)

    @property
    def n_samples(self) -> int:
        """Samples per epoch: the number of training images, or more with ``repeat_factor_threshold``."""
        return self._batches.order.n_samples

    @property
    def batch_size(self) -> int:
        """Images per step."""
        return self.config.batch_size

    def batches(self, first_step: int, total_steps: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to ``total_steps - 1``, in order.

        Raises `InputError` that names a sample that cannot be read, at the step that needs it.
        """
        data = self.config.data
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=range(first_step, total_steps),
            collate_fn=_unchanged,
            num_workers=data.workers,
            prefetch_factor=data.prefetch_batches if data.workers else None,
            multiprocessing_context=data.start_method if data.workers else None,
            worker_init_fn=_prepare_worker,
            # Torch draws a seed for its workers, which is not used here; a generator of its own leaves the global one
            # unchanged.
            generator=torch.Generator(),
        )
        for item in loader:
            if isinstance(item, CellwrightError):
                raise item
            yield item


def _unchanged(item: Any) -> Any:
    return item


def _prepare_worker(worker: int) -> None:
    # Ctrl-C is sent to the whole process group; the training process stops its workers itself, after a checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The thread pool of OpenCV does not survive a fork.
    cv2.setNumThreads(0)

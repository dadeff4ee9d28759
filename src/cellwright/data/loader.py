"""Training batches, as a pure function of the step number.

The samples of a step and all random changes of them depend only on the seed, the step and the position in the batch.
The number of worker processes, their scheduling, restarts and earlier training therefore do not change a batch. Where
several processes train together, each has some positions of every batch, with the same images as in one process.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from cellwright.config.conventions import ResizeRule
from cellwright.config.input import AugmentConfig, DataConfig, InputConfig
from cellwright.core.dataset import Sample
from cellwright.core.errors import CellwrightError, InputError
from cellwright.core.events import emit
from cellwright.core.interrupts import SIGNALS, accept_signals, hold_signals
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
_GRACE_S = 60  # in which the training process finishes a step and writes a checkpoint


@dataclass(frozen=True)
class LoaderConfig:
    """Everything that determines a batch, apart from the samples.

    Attributes:
        input: the conversion from image to network input.
        augment: random changes.
        data: filters, worker processes, cache.
        resize_rule: the framework whose resizing is used.
        stride: batches are padded to a multiple of it, in pixels.
        batch_size: images per batch, over all processes that train together.
        seed: of all random draws.
        reading: which part of each image file is used.
        rank, n_ranks: this process of those that train together, which ``batch_size`` is a multiple of.
    """

    input: InputConfig
    augment: AugmentConfig
    data: DataConfig
    resize_rule: ResizeRule
    stride: int
    batch_size: int
    seed: int
    reading: Reading = Reading()  # noqa: RUF009 - frozen
    rank: int = 0
    n_ranks: int = 1

    @property
    def positions(self) -> range:
        """The positions of each batch that this process has."""
        n_own = self.batch_size // self.n_ranks
        return range(self.rank * n_own, (self.rank + 1) * n_own)


class TrainingBatches(Dataset):
    """A torch dataset whose item ``step`` is the complete batch of that step.

    Errors that the user can fix are returned instead of raised, because torch would wrap them in the traceback of a
    worker process.
    """

    def __init__(self, samples: Sequence[Sample], config: LoaderConfig) -> None:
        self.samples = tuple(samples)
        self.config = config
        self.order = SampleOrder(config.seed, len(self.samples), _repeat_factors(self.samples, config.data))
        shares = max(1, config.data.workers) * config.n_ranks
        self.cache = DecodeCache(config.data.cache_mb * 2**20 // shares)

    def __getitem__(self, step: int) -> Batch | bytes | CellwrightError:
        try:
            batch = self.batch(step)
            return batch if get_worker_info() is None else _shared(batch)
        except CellwrightError as error:
            return error

    def batch(self, step: int) -> Batch:
        """The batch of step ``step``. Raises `InputError` that names a sample that cannot be read."""
        config = self.config
        images, labels, order = [], [], self.order.batch(step, config.batch_size)
        for position in config.positions:
            decoded = self._decoded(int(order[position]))
            frame = frame_of(decoded, config.input, config.resize_rule)
            rng = augment_rng(config.seed, step, position)
            pixels, objects = augment(decoded.pixels, decoded.labels, config.augment, rng, frame)
            images.append(torch.from_numpy(network_pixels(pixels, decoded, config.input)))
            labels.append(objects)
        seed = int(np.random.SeedSequence([_MODEL, config.seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
        batch = collate(images, labels, stride=config.stride, seed=seed)
        return replace(batch, first=config.positions.start)

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

    def batches(self, first_step: int, total_steps: int) -> Iterator[Batch]:
        """The batches of steps ``first_step`` to ``total_steps - 1``, in order.

        Where loading processes cannot be started or end, a warning is logged, and the training process loads the rest.
        Raises `InputError` that names a sample that cannot be read, at the step that needs it.
        """
        step, workers = first_step, self.config.data.workers
        while step < total_steps:
            try:
                for item in self._loaded(range(step, total_steps), workers):
                    if isinstance(item, CellwrightError):
                        raise item
                    step += 1
                    yield pickle.loads(item) if isinstance(item, bytes) else item
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                if not workers or not is_worker_failure(error):
                    raise
                reason = (str(error).strip() or "one of them ended").splitlines()[0].rstrip(".")
                text = f"images are loaded in the training process, since loading processes failed: {reason}"
                emit("loader", f"warning: {text}; {WORKER_REMEDY}")
                workers = 0

    def _loaded(self, steps: Sequence[int], workers: int) -> Iterator[Batch | bytes | CellwrightError]:
        data = self.config.data
        if workers:  # fails without shared memory, where an unfinished DataLoader would print errors
            multiprocessing.get_context(data.start_method).Lock()
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=steps,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=data.prefetch_batches if workers else None,
            multiprocessing_context=data.start_method if workers else None,
            worker_init_fn=_prepare_worker,
            # Torch draws a seed for its workers, which is not used here; a generator of its own leaves the global one
            # unchanged.
            generator=torch.Generator(),
        )
        if not workers:
            return iter(loader)
        with hold_signals(), _without_child_signals():
            return iter(loader)


@contextmanager
def _without_child_signals() -> Iterator[None]:
    """Restore the handling of SIGCHLD at the end.

    Torch's handler raises an error when a loading process ends, wherever the training process is then; without it, the
    next batch raises the error, at most five seconds later.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


WORKER_REMEDY = "set data.workers to 0 or to fewer; containers may need more memory, also in /dev/shm"


def is_worker_failure(error: Exception) -> bool:
    """Whether ``error`` means that loading processes cannot be started, or that one of them was ended."""
    if isinstance(error, OSError | EOFError | pickle.UnpicklingError):  # the others: half of a batch
        return True
    return "DataLoader worker" in str(error) or "new thread" in str(error)


def _unchanged(item: Any) -> Any:
    return item


def _shared(batch: Batch) -> Batch | bytes:
    """The batch in shared memory; where that is full (it is small in containers), as bytes, which take a little longer.

    Torch would share it later, in a thread whose errors leave the training process waiting.
    """
    try:
        for tensor in (batch.images, *batch.boxes, *batch.class_ids, *batch.ignore, *batch.layers, *batch.layer_of):
            tensor.share_memory_()
    except RuntimeError:
        return pickle.dumps(batch)
    return batch


def _prepare_worker(worker: int) -> None:
    # Signals reach the whole process group; the training process stops its workers itself, after a checkpoint.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # SIGTERM is also how a worker is ended that does not answer: it ends later
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_S))
    accept_signals()
    sys.excepthook = _report_unless_disconnected
    # The thread pool of OpenCV does not survive a fork.
    cv2.setNumThreads(0)


def _report_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: a training process that is interrupted may end a connection to its workers."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)

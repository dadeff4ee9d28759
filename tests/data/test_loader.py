"""Batches depend on the step only, not on workers, the cache, or the step at which a run starts."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cellwright.config.input import AugmentConfig, DataConfig, InputConfig
from cellwright.core.dataset import Loaded, Sample
from cellwright.core.errors import FormatError, InputError
from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.masks import MaskSet
from cellwright.data.loader import LoaderConfig, TrainingBatches, TrainingLoader
from cellwright.data.network_input import to_network
from cellwright.data.sampling import SampleOrder
from cellwright.ops.batch import Batch

AUGMENT = AugmentConfig(
    crop_px=24, scale_min=0.8, scale_max=1.25, quarter_turns=True, brightness=0.2, hue=0.1, saturation=0.1
)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """Five RGBA images of different sizes, with two overlapping objects each; the last has none."""
    samples = []
    for i in range(5):
        hw = (36 + i, 45 - i)
        rng = np.random.default_rng(i)
        image = rng.integers(0, 255, (*hw, 4), dtype=np.uint8)
        image[:, :, 3] = 255
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        boxes = np.array([[3 + i, 4, 20 + i, 20], [10, 10, 30, 30]])
        masks = MaskSet.from_crops(boxes, [np.ones((b[3] - b[1], b[2] - b[0]), bool) for b in boxes], hw)
        instances = Instances.from_masks(masks) if i < 4 else Instances.empty(hw)
        samples.append(Sample(f"image-{i}", tmp_path / f"{i}.png", hw, Loaded(instances)))
    return samples


def loader_for(samples: list[Sample], **changes: object) -> TrainingLoader:
    config = LoaderConfig(InputConfig(), AUGMENT, DataConfig(), "torchvision", stride=16, batch_size=3, seed=7)
    return TrainingLoader(samples, dataclasses.replace(config, **changes))


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    assert a.image_hws == b.image_hws
    assert a.seed == b.seed
    for name in ("boxes", "class_ids", "ignore", "layers", "layer_of"):
        assert all(torch.equal(x, y) for x, y in zip(getattr(a, name), getattr(b, name), strict=True)), name


@pytest.mark.parametrize("data", [DataConfig(workers=2), DataConfig(workers=1, cache_mb=0), DataConfig(cache_mb=0)])
def test_batches_are_bit_identical_for_any_workers_and_cache(samples: list[Sample], data: DataConfig) -> None:
    expected = list(loader_for(samples).batches(0, 6))
    for a, b in zip(expected, loader_for(samples, data=data).batches(0, 6), strict=True):
        assert_same(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_start_methods_give_the_same_batches(samples: list[Sample], method: str) -> None:
    data = DataConfig(workers=2, start_method=method)  # type: ignore[arg-type]
    for a, b in zip(loader_for(samples).batches(0, 3), loader_for(samples, data=data).batches(0, 3), strict=True):
        assert_same(a, b)


def test_where_shared_memory_is_full(samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    expected = list(loader_for(samples).batches(0, 3))
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # inherited by workers, which are forked
    data = DataConfig(workers=1, start_method="fork")
    for a, b in zip(expected, loader_for(samples, data=data).batches(0, 3), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("failure", ["no shared memory", "killed"])
def test_where_loading_processes_fail(
    samples: list[Sample], failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    expected, training = list(loader_for(samples).batches(0, 4)), os.getpid()
    if failure == "killed":
        of_step = TrainingBatches.batch

        def batch(batches: TrainingBatches, step: int) -> Batch:
            if step == 2 and os.getpid() != training:
                os.kill(os.getpid(), signal.SIGKILL)
            return of_step(batches, step)

        monkeypatch.setattr(TrainingBatches, "batch", batch)
    else:
        monkeypatch.setattr("multiprocessing.context.BaseContext.Lock", failing)
    data = DataConfig(workers=1, start_method="fork")
    for a, b in zip(expected, loader_for(samples, data=data).batches(0, 4), strict=True):
        assert_same(a, b)
    assert "images are loaded in the training process, since" in caplog.text


def test_batches_of_a_resumed_run_equal_those_of_a_complete_run(samples: list[Sample]) -> None:
    torch.manual_seed(1)
    whole = list(loader_for(samples).batches(0, 5))
    state = torch.get_rng_state()
    rest = list(loader_for(samples).batches(3, 5))
    assert torch.equal(state, torch.get_rng_state())  # the global generator of torch is unchanged
    assert len(rest) == 2
    assert_same(whole[3], rest[0])
    assert_same(whole[4], rest[1])
    assert whole[0].seed != whole[1].seed
    assert list(loader_for(samples).batches(5, 5)) == []


def test_a_sample_without_augmentation_is_the_image_itself(samples: list[Sample]) -> None:
    plain = AugmentConfig(horizontal_flip=0)
    (batch,) = loader_for(samples, augment=plain, batch_size=1).batches(0, 1)
    sample = samples[int(SampleOrder(7, 5).batch(0, 1)[0])]
    height, width = sample.image_hw
    pixels = cv2.imread(str(sample.image_path), cv2.IMREAD_UNCHANGED)[:, :, 2::-1]
    expected = to_network(Image.from_array(pixels), InputConfig())
    assert np.array_equal(batch.images[0, :, :height, :width].numpy(), expected)
    assert batch.images.shape[2] % 16 == batch.images.shape[3] % 16 == 0
    assert torch.count_nonzero(batch.images[0, :, height:]) == 0
    instances = sample.read_instances()
    assert np.array_equal(batch.boxes[0].numpy(), instances.boxes_xyxy)
    back, numbers = MaskSet.from_layers(batch.layers[0].numpy())
    assert back == instances.masks
    assert numbers.tolist() == [1, 2][: len(instances)]


def test_percentiles_are_those_of_the_whole_image(samples: list[Sample]) -> None:
    """A crop is normalised as at prediction, where the network receives the whole image."""
    config = InputConfig(normalise="percentile", percentiles=(5, 95))
    augment = AugmentConfig(crop_px=16, horizontal_flip=0)
    (batch,) = loader_for(samples, input=config, augment=augment, batch_size=1).batches(0, 1)
    sample = samples[int(SampleOrder(7, 5).batch(0, 1)[0])]
    pixels = cv2.imread(str(sample.image_path), cv2.IMREAD_UNCHANGED)[:, :, 2::-1]
    whole = to_network(Image.from_array(pixels), config)
    crop = batch.images[0].numpy()
    positions = [(y, x) for y in range(whole.shape[1] - 15) for x in range(whole.shape[2] - 15)]
    assert any(np.array_equal(whole[:, y : y + 16, x : x + 16], crop) for y, x in positions)


def test_the_scale_of_the_network_applies_to_training(samples: list[Sample]) -> None:
    plain = AugmentConfig(horizontal_flip=0)
    (batch,) = loader_for(samples, input=InputConfig(scale=2), augment=plain, batch_size=1).batches(0, 1)
    sample = samples[int(SampleOrder(7, 5).batch(0, 1)[0])]
    assert batch.image_hws == [(2 * sample.image_hw[0], 2 * sample.image_hw[1])]


def test_objects_are_scaled_to_the_diameter_of_the_network(samples: list[Sample]) -> None:
    """The median diameter is that of the whole image, not of the crop; an image without objects keeps its size."""
    plain = AugmentConfig(horizontal_flip=0, crop_px=4096)
    for step in range(5):
        config = InputConfig(diameter_px=40)
        loader = loader_for(samples, input=config, augment=plain, batch_size=1)
        (batch,) = loader.batches(step, step + 1)
        instances = samples[int(SampleOrder(7, 5).batch(step, 1)[0])].read_instances()
        diameters = 2 * np.sqrt(np.bincount(batch.layers[0].numpy().ravel())[1:] / np.pi)
        if len(instances):
            assert np.median(diameters) == pytest.approx(40, rel=0.02)
        else:
            assert batch.image_hws == [instances.image_hw]


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_outside_the_image_equal_the_padding_of_the_batch(
    samples: list[Sample], order: str, channels: int
) -> None:
    """0 after normalisation, like the padding of the batch, up to rounding to 8 bits."""
    order = order if channels == 3 else "rgb"
    mean = (0.2, 0.5, 0.8)[:channels]
    config = InputConfig(channels=channels, colour_order=order, mean=mean, std=(0.5,) * channels)  # type: ignore[arg-type]
    augment = AugmentConfig(crop_px=64, pad_to_crop=True, horizontal_flip=0)
    (batch,) = loader_for(samples, input=config, augment=augment).batches(0, 1)
    assert batch.image_hws == [(64, 64)] * 3
    assert torch.abs(batch.images[:, :, 50:, 50:]).max() <= 0.5 / 255 / 0.5 + 1e-6
    assert all(layers.shape[1:] == (64, 64) for layers in batch.layers)


def test_rare_classes_occur_more_often_and_the_epoch_grows(samples: list[Sample]) -> None:
    """One of five images has an object of class 1 that is large enough: it occurs sqrt(.8 / .2) = 2 times."""
    changed = []
    for i, sample in enumerate(samples):
        instances = sample.read_instances()
        class_ids = np.array([0, 1 if i == 2 else 0])[: len(instances)]
        changed.append(dataclasses.replace(sample, load=Loaded(dataclasses.replace(instances, class_ids=class_ids))))
    data = DataConfig(repeat_factor_threshold=0.8)
    loader = loader_for(changed, data=data)
    assert loader.n_samples == 6
    assert loader_for(changed).n_samples == 5
    order = np.concatenate([loader._batches.order.batch(step, 3) for step in range(8)]).reshape(4, 6)
    assert all(np.bincount(epoch, minlength=5).tolist() == [1, 1, 2, 1, 1] for epoch in order)
    # Class 1 does not occur if its object is above the size limit.
    assert loader_for(changed, data=data.model_copy(update={"max_area_px": 300})).n_samples == 5
    for a, b in zip(loader.batches(4, 6), loader_for(changed, data=data).batches(4, 6), strict=True):
        assert_same(a, b)


def test_objects_are_filtered_by_area(samples: list[Sample]) -> None:
    plain = AugmentConfig(horizontal_flip=0)
    data = DataConfig(min_area_px=300)
    (batch,) = loader_for(samples, augment=plain, data=data, batch_size=5).batches(0, 1)
    # 17 x 16 px is below the limit, 20 x 20 px is not; one image has no objects.
    assert sorted(len(boxes) for boxes in batch.boxes) == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(samples: list[Sample], workers: int) -> None:
    path = samples[2].image_path
    assert path is not None
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FormatError) as caught:
        list(loader_for(samples, data=DataConfig(workers=workers)).batches(0, 4))
    assert str(path) in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_objects_of_another_size_are_named(samples: list[Sample]) -> None:
    wrong = [dataclasses.replace(samples[0], load=Loaded(Instances.empty((9, 9))))]
    with pytest.raises(InputError, match="sample image-0") as caught:
        next(loader_for(wrong).batches(0, 1))
    assert "objects (9, 9)" in str(caught.value)


def test_no_images_and_no_image_path(samples: list[Sample]) -> None:
    with pytest.raises(InputError, match="the training set is empty"):
        loader_for([])
    results = [dataclasses.replace(samples[0], image_path=None)]
    with pytest.raises(InputError, match="no image to train on"):
        next(loader_for(results).batches(0, 1))


def test_the_cache_is_limited_and_not_sent_to_other_processes(samples: list[Sample]) -> None:
    loader = loader_for(samples)
    list(loader.batches(0, 4))
    cache = loader._batches.cache
    assert len(cache) == 5
    assert len(pickle.loads(pickle.dumps(cache))) == 0
    cache.limit_bytes = 0
    cache.offer(99, cache.get(0))  # type: ignore[arg-type]
    assert cache.get(99) is None

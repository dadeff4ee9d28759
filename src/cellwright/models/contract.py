"""The protocols that models of every family implement.

`Segmenter` is the public protocol: images in, objects out. `Network` is a trainable module: a batch becomes losses, and
padded image tensors become objects. A network may also support test-time augmentation (`DetectsViews`), be pruned
(`Prunes`), and report what happened to its candidates (`Explains`). Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from cellwright.core.image import Image
from cellwright.core.instances import Instances
from cellwright.core.public import public
from cellwright.data.views import View

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from cellwright.ops.batch import Batch

RenderView: TypeAlias = "Callable[[View], tuple[Tensor, tuple[int, int]]]"
"""A view's network input FloatTensor[1,C,H,W], normalised, padded right and below and then turned, so that the cells of
the network lie on the same pixels in every orientation; and (h, w) before both."""


Wanted: TypeAlias = Callable[["np.ndarray", "np.ndarray"], "np.ndarray"]
"""Which objects (N,) bool, of these scores (N,) and class ids (N,), need masks."""


@public
@runtime_checkable
class Segmenter(Protocol):
    """A method that finds the objects of whole images.

    Implement this one method to use a model of your own in `cellwright`: `predict_folder`, `evaluate` and `fuse` take
    what it returns, `predict_tiles` shows it windows of a large image, and `cellwright.testing` checks an
    implementation.

    >>> class Threshold:
    ...     def predict(self, images):
    ...         return [self._objects(image.data[:, :, 0]) for image in images]
    ...
    ...     def _objects(self, grey):
    ...         masks, _ = MaskSet.from_label_map((grey > 100).astype("uint8"))
    ...         return Instances.from_masks(masks, scores=np.full(len(masks), 0.9))
    >>> isinstance(Threshold(), Segmenter)
    True
    >>> import numpy as np
    >>> from cellwright import Image, Instances, MaskSet
    >>> [instances] = Threshold().predict([Image.from_array(np.eye(4, dtype=np.uint8) * 200)])
    >>> len(instances), instances.masks.areas.tolist()
    (1, [4])
    """

    def predict(self, images: Sequence[Image]) -> list[Instances]:
        """The objects of each image, in the order of the images.

        Each `Instances` has the size of its image, scores in [0, 1] and class ids 0..K-1, best first. An image without
        objects gives `Instances` of length 0; an empty sequence gives an empty list. Raise `InputError` for an image
        that cannot be used: `predict_folder` then records the failure and continues.
        """
        ...


@runtime_checkable
class Network(Protocol):
    """A trainable ``nn.Module``. ``train()`` and ``eval()`` change normalisation layers only, never a return type."""

    @property
    def stride(self) -> int:
        """H and W of every image tensor must be multiples of it, px."""
        ...

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, already weighted; the training loop sums them. Finite for images without objects."""
        ...

    def detect(
        self, images: Tensor, image_hws: Sequence[tuple[int, int]], output_hws: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """The objects of each image.

        Args:
            images: FloatTensor[B,C,H,W], normalised and zero-padded as in ``Batch.images``.
            image_hws: unpadded (h, w) of each image, px.
            output_hws: (height, width) at which boxes and masks are given, px: usually that of the original image.

        Returns:
            Per image ``Instances`` sorted by descending score, with masks pasted directly into a ``MaskSet`` of
            ``output_hw``.
        """
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def train(self, mode: bool = True) -> nn.Module: ...

    def eval(self) -> nn.Module: ...

    def to(self, device: torch.device | str) -> nn.Module: ...


@runtime_checkable
class DetectsViews(Protocol):
    """A network that supports test-time augmentation."""

    def detect_views(self, views: Sequence[View], render: RenderView, output_hw: tuple[int, int]) -> Instances:
        """The objects of one image, from the network's outputs for all its views.

        Args:
            views: at least one. With the plain view alone, the result equals that of ``Network.detect``.
            render: makes the network's input for a view; a family may ask for the same view more than once.
            output_hw: (height, width) at which boxes and masks are given, in the image's own orientation, px.

        Returns:
            ``Instances`` sorted by descending score; an empty result is valid.
        """
        ...


@runtime_checkable
class Prunes(Protocol):
    """A network of which a part can be used, which is faster and less accurate."""

    def pruned(self, depth: int) -> Network:
        """The network without the levels below ``depth``; it shares its weights.

        Raises `UsageError` if this network cannot be used so.
        """
        ...


@runtime_checkable
class SparesMasks(Protocol):
    """A network, or a predictor with one, that computes only the masks that are needed: they take most of its time."""

    def with_masks_of(self, wanted: Wanted) -> Any:
        """The same with the same weights; objects that are not wanted may have no pixels.

        A network that lowers scores by the quality of the masks asks about the scores before.
        """
        ...


@runtime_checkable
class Explains(Protocol):
    """A network that can report what happened to its own candidates."""

    def candidates(
        self, images: Tensor, image_hw: tuple[int, int], output_hw: tuple[int, int], boxes: Tensor
    ) -> Instances:
        """The candidates of one image that overlap one of ``boxes`` (FloatTensor[N,4], pixels of the output).

        The column ``dropped_by`` names the step that dropped each (see `core.candidates`); other arguments are as in
        ``Network.detect``.
        """
        ...

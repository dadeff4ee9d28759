"""`Recipe`: one experiment, every choice of it in one validated, frozen object."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cellwright.config.classical_schema import ClassicalConfig
from cellwright.config.conventions import CONVENTIONS, ConventionsName
from cellwright.config.dense_schema import UNetConfig
from cellwright.config.input_schema import InputConfig
from cellwright.config.model_schema import C4Config, CascadeConfig, MaskRCNNConfig, PointRendConfig, RCNNConfig
from cellwright.config.sample_schema import AugmentConfig, DataConfig
from cellwright.config.train_schema import TrainConfig

SCHEMA_VERSION = 1
ModelConfig = Annotated[
    MaskRCNNConfig | C4Config | CascadeConfig | PointRendConfig | UNetConfig | ClassicalConfig,
    Field(discriminator="kind"),
]


class EvaluateConfig(BaseModel):
    """How a model is judged while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    split: str = Field(default="val", description="Split that is judged.")
    metrics: tuple[str, ...] = Field(
        default=("coco_ap", "accuracy"), description="Groups of metrics, see docs/metrics.md."
    )
    max_images: int | None = Field(default=None, ge=1, description="Only the first images of the split; none: all.")


class PredictConfig(BaseModel):
    """Which of the model's objects become a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    score_threshold: float = Field(
        default=0.5, ge=0, le=1, description="Objects that score less are left out of a result."
    )
    min_area_px: int = Field(default=0, ge=0, description="Smaller objects are left out, pixels of the image.")


class Recipe(BaseModel):
    """One experiment. Sections that do not apply to a model kind are not read by it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(description="What the recipe is called in tables.")
    description: str = Field(default="", description="What the experiment is, and what was published for it.")
    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, description="Version of this schema.")
    classes: int | None = Field(default=None, ge=1, description="Object classes; none: as many as the dataset has.")
    conventions: ConventionsName = Field(
        default="torchvision", description="Whose habits decide where frameworks differ."
    )
    input: InputConfig = Field(default=InputConfig(), description="From image to network input.")
    model: ModelConfig = Field(description="The network, or the classical method.")
    augment: AugmentConfig = Field(default=AugmentConfig(), description="Random changes of training samples.")
    data: DataConfig = Field(default=DataConfig(), description="What is loaded, and how.")
    train: TrainConfig = Field(default=TrainConfig(), description="Optimiser and schedule.")
    evaluate: EvaluateConfig = Field(default=EvaluateConfig(), description="Judging while training.")
    predict: PredictConfig = Field(default=PredictConfig(), description="From detections to a result.")

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        if self.augment.crop_px is not None and self.augment.crop_px < 64 and isinstance(self.model, RCNNConfig):
            raise ValueError(f"augment.crop_px ({self.augment.crop_px}) is below 64, the stride of the last FPN level")
        crop, stride = self.augment.crop_px, 0
        if isinstance(self.model, UNetConfig) and self.model.norm == "batch_norm":
            stride = 2**self.model.depth
        if crop is not None and crop <= stride and self.train.batch_size == 1:
            raise ValueError(
                f"augment.crop_px ({crop}) must be above {stride} (2 to the power of model.depth), or train.batch_size "
                "(1) above 1: batch_norm needs more than one value"
            )
        if self.input.normalise == "percentile" and (self.augment.stain or self.augment.stain_shift):
            raise ValueError(
                f"augment.stain ({self.augment.stain}) and augment.stain_shift ({self.augment.stain_shift}) need "
                "intensities of light: input.normalise must be fixed, not percentile"
            )
        return self

    def resolved(self) -> Recipe:
        """This recipe with every None that ``conventions`` decides filled in; what is saved beside a result."""
        if not isinstance(self.model, RCNNConfig):
            return self
        return self.model_copy(update={"model": self.model.resolved(CONVENTIONS[self.conventions])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are written to YAML and JSON; tuples become lists."""
        return self.model_dump(mode="json")

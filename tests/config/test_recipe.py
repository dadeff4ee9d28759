"""Recipe files: all shipped recipes load; extension, overrides and error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cellwright.config import recipe as recipes
from cellwright.core.errors import RecipeError

MINIMAL = "name: mine\nmodel: {kind: mask_rcnn}\n"


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", recipes.shipped_names())
def test_shipped_recipes_and_their_dumps_load(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    again = recipes.load(write(tmp_path / "again.yaml", recipes.dump(recipe)))
    assert again == recipe.resolved()


def test_standard_is_quick_with_ten_times_the_steps() -> None:
    quick, standard = recipes.load("vrdl_nuclei/quick"), recipes.load("vrdl_nuclei/standard")
    assert standard.model == quick.model
    assert standard.train.length.amount == 10 * quick.train.length.amount


def test_overrides_are_validated() -> None:
    recipe = recipes.load("vrdl_nuclei/quick", ["train.lr=2e-4", "augment.crop_px=128", "train.length=3 epochs"])
    assert (recipe.train.lr, recipe.augment.crop_px, str(recipe.train.length)) == (2e-4, 128, "3 epochs")
    with pytest.raises(RecipeError, match="has no value"):
        recipes.load("vrdl_nuclei/quick", ["train.lr"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", r"unknown key 'train.lrr': did you mean 'lr'\?"),
        ("trian.lr=1", r"unknown key 'trian': did you mean 'train'\?"),
        ("model.backbone.depht=18", r"unknown key 'model.backbone.depht': did you mean 'depth'\?"),
        ("train.lr=-1", "train.lr: .*greater than 0, got -1"),
        ("model.kind=mask_rcn", r"model.kind: unknown kind 'mask_rcn': did you mean 'mask_rcnn'\?"),
        ("train.length=5", r"train.length: 5 is not a length of training; write 5 steps, 2.5 epochs or 5%\n"),
        ("model.backbone=5", "model.backbone: must be a section"),
        ("model.fpn.first_level=1", "anchors.sizes_px has 5 levels"),
    ],
)
def test_errors_name_wrong_keys_and_values(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load("vrdl_nuclei/quick", [override])


def test_batch_norm_needs_more_than_one_value() -> None:
    changes = ("augment.crop_px=64", "model.depth=6")
    with pytest.raises(RecipeError, match=r"crop_px \(64\) must be above 64"):
        recipes.load("vrdl_nuclei/flow", (*changes, "train.batch_size=1"))
    recipes.load("vrdl_nuclei/flow", changes)


def test_a_recipe_may_extend_once(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", MINIMAL)
    write(tmp_path / "b.yaml", "extends: a\nname: b\ntrain: {lr: 0.5}\n")
    c = write(tmp_path / "c.yaml", "extends: b\nname: c\n")
    assert recipes.load(str(tmp_path / "b.yaml")).train.lr == 0.5
    with pytest.raises(RecipeError, match="itself extends another"):
        recipes.load(c)


def test_another_model_kind_replaces_the_whole_section() -> None:
    recipe = recipes.load("vrdl_nuclei/quick", ["model.kind=classical"])
    assert recipe.model.kind == "classical"


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "1: 2", ""])
def test_invalid_yaml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="bad.yaml"):
        recipes.load(write(tmp_path / "bad.yaml", text))


def test_the_closest_name_is_suggested_for_an_unknown_recipe() -> None:
    with pytest.raises(RecipeError, match="did you mean 'vrdl_nuclei/quick'"):
        recipes.load("vrdl_nuclei/quik")


def test_every_field_has_a_description() -> None:
    def visit(schema: dict, path: str) -> None:
        for name, field in schema.get("properties", {}).items():
            has_text = field.get("description") or "$ref" in field or "allOf" in field
            assert has_text, f"{path}.{name} has no description"

    schema = recipes.Recipe.model_json_schema()
    visit(schema, "Recipe")
    for name, part in schema["$defs"].items():
        visit(part, name)


def test_yaml_is_plain() -> None:
    assert "!!" not in recipes.dump(recipes.load("vrdl_nuclei/quick"))
    assert isinstance(yaml.safe_load(recipes.dump(recipes.load("vrdl_nuclei/quick"))), dict)


@pytest.mark.parametrize(
    ("key", "use"),
    [
        ("train.steps", "train.length"),
        ("train.epochs", "train.length"),
        ("train.learning_rate", "train.lr"),
        ("lr", "train.lr"),
        ("num_epochs", "train.length"),
        ("crop_px", "augment.crop_px"),
        ("model.nms_iou", "model.rpn.nms_iou or model.box_head.nms_iou"),
    ],
)
def test_keys_of_other_tools_are_answered_with_ours(key: str, use: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown key '{key}': use {use}"):
        recipes.load("nuclei/finetune", [f"{key}=5"])

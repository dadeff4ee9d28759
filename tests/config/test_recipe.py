"""Recipes: every shipped one loads; extension, overrides and messages."""

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
def test_every_shipped_recipe_loads_and_its_dump_loads_again(name: str, tmp_path: Path) -> None:
    recipe = recipes.load(name)
    assert recipe.name == name
    again = recipes.load(write(tmp_path / "again.yaml", recipes.dump(recipe)))
    assert again == recipe.resolved()


def test_standard_is_quick_with_more_steps() -> None:
    quick, standard = recipes.load("vrdl_nuclei/quick"), recipes.load("vrdl_nuclei/standard")
    assert standard.model == quick.model
    assert standard.train.length.amount == 10 * quick.train.length.amount


def test_overrides_go_through_the_validator() -> None:
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
        ("model.kind=mask_rcn", "model"),
        ("model.fpn.first_level=1", "anchors.sizes_px has 5 levels"),
    ],
)
def test_wrong_keys_and_values_are_named(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipes.load("vrdl_nuclei/quick", [override])


def test_batch_norm_sees_more_than_one_value() -> None:
    changes = ("augment.crop_px=64", "model.depth=6")
    with pytest.raises(RecipeError, match=r"crop_px \(64\) must be above 64"):
        recipes.load("vrdl_nuclei/flow", (*changes, "train.batch_size=1"))
    recipes.load("vrdl_nuclei/flow", changes)


def test_a_recipe_extends_once(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", MINIMAL)
    write(tmp_path / "b.yaml", "extends: a\nname: b\ntrain: {lr: 0.5}\n")
    c = write(tmp_path / "c.yaml", "extends: b\nname: c\n")
    assert recipes.load(str(tmp_path / "b.yaml")).train.lr == 0.5
    with pytest.raises(RecipeError, match="may extend once"):
        recipes.load(c)


def test_another_model_kind_replaces_the_whole_section() -> None:
    recipe = recipes.load("vrdl_nuclei/quick", ["model.kind=classical"])
    assert recipe.model.kind == "classical"


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "1: 2", ""])
def test_what_is_not_a_recipe(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match="bad.yaml"):
        recipes.load(write(tmp_path / "bad.yaml", text))


def test_an_unknown_recipe_gets_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'vrdl_nuclei/quick'"):
        recipes.load("vrdl_nuclei/quik")


def test_every_field_says_what_it_is() -> None:
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

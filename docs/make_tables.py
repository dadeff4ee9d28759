"""``python docs/make_tables.py models`` regenerates the tables of docs/models.md from the schema and the networks.

A table is between ``<!-- table NAME -->`` and ``<!-- end -->``. tests/test_docs_models.py compares the page with this.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from cellwright.config import conventions, recipe
from cellwright.config.model_classical import ClassicalConfig
from cellwright.config.model_dense import (
    CellposeConfig,
    CellposeTarget,
    FlowTarget,
    StarDistConfig,
    StarsTarget,
    UNetConfig,
    WatershedTarget,
)
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, MaskScoringConfig, PointRendConfig
from cellwright.config.recipe import Recipe
from cellwright.models.build import network_without_weights

HERE = Path(__file__).parent
PARTS = ("backbone", "fpn", "rpn", "box_head", "mask_head", "point_head")
OPTION = ("option", "default", "values", "meaning")


def table(header: Any, rows: list[Any], numbers: int = 0) -> str:
    """A Markdown table; the last ``numbers`` columns are right-aligned."""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, rule, *rows])


def shown(value: Any) -> str:
    """A value as it is written in a recipe; 1/9 stays 1/9."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return "1/9" if value == 1 / 9 else f"{value:g}" if isinstance(value, float) else str(value)


def allowed(schema: dict[str, Any]) -> str:
    """The values that the JSON schema of a field accepts."""
    if parts := [part for part in schema.get("anyOf", ()) if part.get("type") != "null"]:
        return allowed(parts[0])
    low, high, above = (schema.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if low is not None:
        return f"{low:g} to {high:g}" if high is not None else f"from {low:g}"
    if above is not None:
        return f"above {above:g}"
    kinds = {"boolean": "true, false", "array": "list", "string": "text"}
    return ", ".join(map(str, schema.get("enum", ()))) or kinds.get(schema.get("type", ""), "section")


def field_rows(section: type[BaseModel], prefix: str, resolved: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per option. ``resolved``: the section by the name of each framework, whose conventions replace null."""
    rows, properties = [], section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        if name == "kind" or isinstance(field.default, BaseModel):
            continue
        default = shown(field.default)
        values = {key: shown(getattr(section, name)) for key, section in resolved.items()}
        if default == "null" and set(values.values()) - {"null"}:
            same = len(set(values.values())) == 1
            default += ": " + (
                next(iter(values.values())) if same else ", ".join(f"{k} {v}" for k, v in values.items())
            )
        rows.append((f"`{prefix}{name}`", default, allowed(properties[name]), str(field.description)))
    return rows


def kind_rows(kind: Any) -> list[tuple[str, ...]]:
    rows, resolved = [], {name: kind().resolved(framework) for name, framework in conventions.CONVENTIONS.items()}
    for name, field in kind.model_fields.items():
        if isinstance(field.default, BaseModel):
            own = {key: getattr(section, name) for key, section in resolved.items()}
            rows += field_rows(type(field.default), f"{name}.", own)
    return rows + field_rows(kind, "", {})


def options(kind: Any) -> str:
    """All options of ``mask_rcnn``; for other kinds, those that differ, and the names of those they do not have."""
    own, base = kind_rows(kind), kind_rows(MaskRCNNConfig)
    names = {row[0] for row in own}
    missing = [row[0] for row in base if row[0] not in names]
    rows = own if kind is MaskRCNNConfig else [row for row in own if row not in base]
    return table(OPTION, rows) + (f"\n\nNot available: {', '.join(missing)}." if missing else "")


def layouts() -> dict[str, tuple[Recipe, int]]:
    """Every network in the table of sizes, and its number of classes."""
    known, networks = yaml.safe_load((HERE / "checkpoints.yaml").read_text(encoding="utf-8")), {}
    for name, entry in known["checkpoints"].items():
        keys = {key: entry[key] for key in ("conventions", "input", "model", "classes")}
        networks[name] = (recipe.from_dict({"name": "counted", **keys}, name), entry["classes"])
    shipped = {name: recipe.load(name) for name in known["recipes"]}
    return networks | {f"recipe {name}": (shipped[name], shipped[name].classes or 1) for name in shipped}


def counts(recipe: Recipe, n_classes: int) -> dict[str, int]:
    """Number of parameters per part, in total and trained; tensors and values in a file of weights."""
    network = network_without_weights(recipe, n_classes)
    sizes = dict.fromkeys((*PARTS, "mask_scoring"), 0)
    for name, parameter in network.named_parameters():
        sizes[name.partition(".")[0]] += parameter.numel()
    stored = [tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    numbers = sum(tensor.numel() for tensor in stored)
    return sizes | {"all": sum(sizes.values()), "trained": trained, "tensors": len(stored), "numbers": numbers}


def sizes() -> str:
    columns, rows = (*PARTS, "all", "trained", "tensors", "numbers"), []
    for name, layout in layouts().items():
        values = counts(*layout)
        rows.append([f"`{name}`", layout[1], *(f"{values[column]:,}" if values[column] else "" for column in columns)])
    return table(["layout", "classes", *(column.replace("_", " ") for column in columns)], rows, 1 + len(columns))


def frameworks() -> str:
    """Every field of config/conventions.py; a docstring that several fields share follows the last of them."""
    names, texts, both = [], {}, conventions.CONVENTIONS.values()
    for line in ast.parse(inspect.getsource(conventions.Conventions)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(line, ast.AnnAssign):
            names.append(line.target.id)  # type: ignore[union-attr]
        else:
            texts = dict.fromkeys(names, " ".join(line.value.value.split()).replace("``", "`")) | texts
    rows = [[f"`{name}`", texts[name], *(shown(getattr(framework, name)) for framework in both)] for name in names[1:]]
    return table(["convention", "meaning", *(framework.name for framework in both)], rows)


def dense() -> str:
    """Options of the U-Net and of all targets, each once."""
    targets = [row for kind in (WatershedTarget, FlowTarget, StarsTarget) for row in field_rows(kind, "target.", {})]
    return table(OPTION, list(dict.fromkeys(field_rows(UNetConfig, "", {}) + targets)))


def own_rows(kind: Any) -> list[tuple[str, ...]]:
    """Options of a dense network that ``unet`` does not have, or with another default."""
    known = field_rows(UNetConfig, "", {})
    return [row for row in field_rows(kind, "", {}) if row not in known]


def with_tables(page: str) -> str:
    """The page with all tables regenerated."""
    kinds = (MaskRCNNConfig, C4Config, CascadeConfig, PointRendConfig)
    makers = {kind.model_fields["kind"].default: lambda kind=kind: options(kind) for kind in kinds}
    makers["cellpose"] = lambda: table(OPTION, own_rows(CellposeConfig) + field_rows(CellposeTarget, "target.", {}))
    makers["stardist"] = lambda: table(OPTION, own_rows(StarDistConfig))
    makers |= {"sizes": sizes, "frameworks": frameworks, "unet": dense}
    makers["checkpoints"] = lambda: f"```yaml\n{(HERE / 'checkpoints.yaml').read_text(encoding='utf-8')}```"
    makers["mask_scoring"] = lambda: table(OPTION, field_rows(MaskScoringConfig, "mask_scoring.", {}))
    makers["classical"] = lambda: table(OPTION, field_rows(ClassicalConfig, "", {}))
    pieces = re.split(r"(<!-- table \w+ -->\n).*?(<!-- end -->)", page, flags=re.DOTALL)
    for index in range(1, len(pieces), 3):
        pieces[index] += makers[pieces[index].split()[2]]() + "\n"
    return "".join(pieces)


if __name__ == "__main__":
    for path in (HERE / f"{name}.md" for name in sys.argv[1:] or ["models"]):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")

"""``python docs/make_tables.py models`` makes the page's tables anew, from the schema and the networks themselves.

A marker is ``<!-- table NAME -->`` ... ``<!-- end -->``; tests/test_docs_models.py compares the page with this.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel

from cellwright.config import conventions, recipe
from cellwright.config.model_classical import ClassicalConfig
from cellwright.config.model_dense import FlowTarget, UNetConfig, WatershedTarget
from cellwright.config.model_rcnn import C4Config, CascadeConfig, MaskRCNNConfig, MaskScoringConfig, PointRendConfig
from cellwright.config.recipe import Recipe
from cellwright.models.build import build_network

HERE = Path(__file__).parent
PARTS = ("backbone", "fpn", "rpn", "box_head", "mask_head", "point_head")
OPTION = ("option", "default", "values", "meaning")


def table(header: Any, rows: list[Any], numbers: int = 0) -> str:
    """Markdown; the last ``numbers`` columns are set to the right."""
    rule = ["---"] * (len(header) - numbers) + ["---:"] * numbers
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, rule, *rows])


def shown(value: Any) -> str:
    """A value as a recipe spells it; 1/9 stays 1/9."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    return "1/9" if value == 1 / 9 else f"{value:g}" if isinstance(value, float) else str(value)


def allowed(schema: dict[str, Any]) -> str:
    """What a field's JSON schema lets in."""
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
    """A row an option; ``resolved`` is the section under each framework's conventions, which fill in what is null."""
    rows, properties = [], section.model_json_schema()["properties"]
    for name, field in section.model_fields.items():
        if name == "kind" or isinstance(field.default, BaseModel):
            continue
        default, found = shown(field.default), {key: shown(getattr(one, name)) for key, one in resolved.items()}
        if default == "null" and set(found.values()) - {"null"}:
            same = len(set(found.values())) == 1
            default += ": " + (next(iter(found.values())) if same else ", ".join(f"{k} {v}" for k, v in found.items()))
        rows.append((f"`{prefix}{name}`", default, allowed(properties[name]), str(field.description)))
    return rows


def kind_rows(kind: Any) -> list[tuple[str, ...]]:
    rows, resolved = [], {name: kind().resolved(one) for name, one in conventions.CONVENTIONS.items()}
    for name, field in kind.model_fields.items():
        if isinstance(field.default, BaseModel):
            own = {key: getattr(one, name) for key, one in resolved.items()}
            rows += field_rows(type(field.default), f"{name}.", own)
    return rows + field_rows(kind, "", {})


def options(kind: Any) -> str:
    """All options of ``mask_rcnn``; of the other kinds those that differ, and the names of those that are gone."""
    own, base = kind_rows(kind), kind_rows(MaskRCNNConfig)
    gone = [row[0] for row in base if row[0] not in {one[0] for one in own}]
    rows = own if kind is MaskRCNNConfig else [row for row in own if row not in base]
    return table(OPTION, rows) + (f"\n\nNot here: {', '.join(gone)}." if gone else "")


def layouts() -> dict[str, tuple[Recipe, int]]:
    """Every network that is counted, and its number of classes."""
    known, found = yaml.safe_load((HERE / "checkpoints.yaml").read_text(encoding="utf-8")), {}
    for name, entry in known["checkpoints"].items():
        keys = {key: entry[key] for key in ("conventions", "input", "model", "classes")}
        found[name] = (recipe.from_dict({"name": "counted", **keys}, name), entry["classes"])
    shipped = {name: recipe.load(name) for name in known["recipes"]}
    return found | {f"recipe {name}": (one, one.classes or 1) for name, one in shipped.items()}


def counts(recipe: Recipe, n_classes: int) -> dict[str, int]:
    """Parameters of each part, of all and of those that are trained; tensors and numbers of a file of weights."""
    with torch.device("meta"):
        network = build_network(recipe, n_classes)
    found = dict.fromkeys((*PARTS, "mask_scoring"), 0)
    for name, parameter in network.named_parameters():
        found[name.partition(".")[0]] += parameter.numel()
    stored = [tensor for name, tensor in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    numbers = sum(tensor.numel() for tensor in stored)
    return found | {"all": sum(found.values()), "trained": trained, "tensors": len(stored), "numbers": numbers}


def sizes() -> str:
    columns, rows = (*PARTS, "all", "trained", "tensors", "numbers"), []
    for name, layout in layouts().items():
        found = counts(*layout)
        rows.append([f"`{name}`", layout[1], *(f"{found[column]:,}" if found[column] else "" for column in columns)])
    return table(["layout", "classes", *(column.replace("_", " ") for column in columns)], rows, 1 + len(columns))


def frameworks() -> str:
    """Every row of config/conventions.py; a text that several rows share stands behind the last of them."""
    names, texts, both = [], {}, conventions.CONVENTIONS.values()
    for line in ast.parse(inspect.getsource(conventions.Conventions)).body[0].body:  # type: ignore[attr-defined]
        if isinstance(line, ast.AnnAssign):
            names.append(line.target.id)  # type: ignore[union-attr]
        else:
            texts = dict.fromkeys(names, " ".join(line.value.value.split()).replace("``", "`")) | texts
    rows = [[f"`{one}`", texts[one], *(shown(getattr(framework, one)) for framework in both)] for one in names[1:]]
    return table(["row", "what it decides", *(one.name for one in both)], rows)


def dense() -> str:
    """The U-Net's options and those of all targets, each once."""
    targets = [row for kind in (WatershedTarget, FlowTarget) for row in field_rows(kind, "target.", {})]
    return table(OPTION, list(dict.fromkeys(field_rows(UNetConfig, "", {}) + targets)))


def made(page: str) -> str:
    """The page with every table made anew."""
    kinds = (MaskRCNNConfig, C4Config, CascadeConfig, PointRendConfig)
    makers = {kind.model_fields["kind"].default: lambda kind=kind: options(kind) for kind in kinds}
    makers |= {"sizes": sizes, "frameworks": frameworks, "unet": dense}
    makers["checkpoints"] = lambda: f"```yaml\n{(HERE / 'checkpoints.yaml').read_text(encoding='utf-8')}```"
    makers["mask_scoring"] = lambda: table(OPTION, field_rows(MaskScoringConfig, "mask_scoring.", {}))
    makers["classical"] = lambda: table(OPTION, field_rows(ClassicalConfig, "", {}))
    pieces = re.split(r"(<!-- table \w+ -->\n).*?(<!-- end -->)", page, flags=re.DOTALL)
    for place in range(1, len(pieces), 3):
        pieces[place] += makers[pieces[place].split()[2]]() + "\n"
    return "".join(pieces)


if __name__ == "__main__":
    for path in (HERE / f"{name}.md" for name in sys.argv[1:] or ["models"]):
        path.write_text(made(path.read_text(encoding="utf-8")), encoding="utf-8")

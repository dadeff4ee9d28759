"""``model export`` to BioImage.IO: a package as a folder or a .zip file, see `models/export/bioimageio.py`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellwright.api.export_parts import MANIFEST, Exported, ExportModelPlan, head_of, network_of, output_of
from cellwright.api.outputs import FileOutput, Output
from cellwright.core.errors import UsageError
from cellwright.core.files import read_text, write_json
from cellwright.core.progress import ProgressReporter
from cellwright.core.table import Table
from cellwright.models.dense.dense import DenseNetwork
from cellwright.models.export import bioimageio, dense
from cellwright.models.export.onnx import require_tools, write_graph
from cellwright.models.export.program import why_no_program, write_program
from cellwright.models.weights.model_folder import CARD, WEIGHTS, model_folder, recipe_of

_EPOCH = 1980, 1, 1, 0, 0, 0


def run(plan: ExportModelPlan, screen: ProgressReporter, *, dry_run: bool) -> Exported | None:
    """See `export_model.run`."""
    require_tools()
    is_zip = plan.out.suffix.lower() == ".zip"
    inputs = [*model_folder(plan.model).iterdir()]
    output: Output = (
        FileOutput(plan.out, inputs=inputs, overwrite=plan.overwrite) if is_zip else output_of(plan, bioimageio.RDF)
    )
    network, info = network_of(plan)
    if not isinstance(network, DenseNetwork):
        raise UsageError(
            "this network cannot be packed for BioImage.IO",
            got=info.kind,
            expected="a U-Net; parts of an R-CNN depend on each other's objects",
            remedy='export it with `to="onnx"`',
        )
    facts = _credits(plan)
    if not output.exists:
        screen.note(f"will write {plan.out}{'' if is_zip else '/'}: a package for BioImage.IO")
        todo = "; ".join(bioimageio.not_expressed(info, recipe_of(info)))
        screen.note(f"users must know what {bioimageio.RDF} cannot say, so {bioimageio.README} does: {todo}")
    if dry_run:
        return None
    with _written(output, is_zip) as folder:
        (graph,) = dense.graphs_of(network)
        graphs = {graph.name: write_graph(graph, folder)}
        manifest = {**head_of(network, info), "graphs": graphs, **dense.rules_of(network)}
        write_json(folder / MANIFEST, manifest)
        if why_no_program(recipe_of(info)) is None:
            write_program(folder)
        bioimageio.write_package(folder, network, info, facts)
        rows = [(path.name, f"{path.stat().st_size / 1e6:.2f}") for path in sorted(folder.iterdir()) if path.is_file()]
    if output.is_complete:
        screen.note(output.text)
    table = Table("package for BioImage.IO", ("file", "size (MB)"), rows)
    return Exported(plan.out, manifest, table, f"package: {plan.out}")


def _credits(plan: ExportModelPlan) -> bioimageio.Credits:
    """Who made the model, and under which licence it is shared. Raises `UsageError` where nothing says it."""
    folder = model_folder(plan.model)
    card = read_text(folder / CARD, "model card") if (folder / CARD).is_file() else ""
    authors = plan.author or bioimageio.from_card(card, "author")
    licence = plan.licence or next(iter(bioimageio.from_card(card, "licence of the weights")), None)
    if not authors or not licence:
        raise UsageError(
            "a package for BioImage.IO names its authors and the licence of its weights",
            where=folder / CARD,
            got=f"no {' and no '.join(['author'] * (not authors) + ['licence of the weights'] * (not licence))}",
            remedy='give `author="NAME"` and `licence="CC-BY-4.0"` (a name of SPDX), or add lines "- author: NAME" and '
            '"- licence of the weights: CC-BY-4.0" to the model card',
        )
    if not re.fullmatch(r"[A-Za-z0-9.+-]+", licence):
        raise UsageError("not a licence", got=licence, expected="a name of SPDX, such as CC-BY-4.0, MIT or CC0-1.0")
    made = bioimageio.made_at(folder / WEIGHTS)
    return bioimageio.Credits(authors=authors, licence=licence, card=card, made=made)


@contextmanager
def _written(output: Output, is_zip: bool) -> Iterator[Path]:
    """A folder for the files of a package, which is packed at the end if the output is a .zip file."""
    with output.write() as folder:
        if not is_zip:
            yield folder
            return
        inner = folder / "package"
        inner.mkdir()
        yield inner
        with zipfile.ZipFile(folder / output.out.name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(inner.iterdir()):
                if path.is_file():
                    archive.writestr(zipfile.ZipInfo(path.name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)

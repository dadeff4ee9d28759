"""How a training takes its folder: a new run, one that goes on, one that is finished already, or one that replaces it.

The folder is a `core.output_folder.OutputFolder`. The request in its claim identifies the run: digests of the recipe
and the inputs, and whether it was started with ``overwrite``. What differs from it is read from the files of the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cellwright.core.claim import Claim, Files, files_below, remove_ours
from cellwright.core.errors import FormatError, InputError, OutputError
from cellwright.core.file_identity import digest_of
from cellwright.core.files import output_error, read_json, read_text, write_json, write_text
from cellwright.core.output_folder import OutputFolder
from cellwright.core.result_folders import REPORT
from cellwright.core.text import count, listed
from cellwright.data.identity import Identity
from cellwright.training.run_folder import CURVES, REPEATS, SCHEMA_VERSION, RunFolder

OTHER_RUN = "choose another `out`, or start from scratch with `overwrite=True`"
_NAMES = re.compile(
    r"(recipe\.yaml|environment\.json|inputs\.json|log\.csv|metrics\.json|init_report\.txt|report\.html|DONE"
    r"|(model|checkpoints/step_\d{8,}/best_model)/(weights\.safetensors|model\.json|README\.md)"
    r"|checkpoints/step_\d{8,}/((weights|optimiser|averaged)\.safetensors|state\.json)"
    r"|validation/((metrics\.json|report\.md|(per_image|per_class|objects|comparison|changes)\.csv)"
    r"|(errors|changes)/.+\.png)"
    rf"|curves/({'|'.join(CURVES)})\.png|tensorboard/events\.out\.tfevents\.[^/]+)"
)
# Files of a finished run without which it is not usable; the last checkpoint is enough to make them again.
_NEEDED = ("recipe.yaml", "environment.json", "metrics.json", "DONE", "model/")


class RunOutput:
    """The folder of a run: `examine`, then `started`. Creating one looks, and changes nothing.

    inputs: files and folders that the training reads. An interrupted run is resumed by the same command, also with
    ``overwrite``, which otherwise replaces an existing run once the new one is finished.

    Raises `OutputError` for a folder with something other than a run, and what `OutputFolder` raises.
    """

    def __init__(self, out: Path, *, overwrite: bool = False, inputs: Iterable[Path | str] = ()) -> None:
        self.out, self._overwrite, self._inputs = out, overwrite, [*inputs]
        self._output = OutputFolder(out, "train", earlier=_earlier_run)
        self._found = self._output.claim
        if overwrite:
            begun = self._found is not None and _is_unfinished_overwrite(self._found)
            self._found = self._output.pending or (self._found if begun else None)
        self._resume: Claim | None = None
        self._request: dict[str, Any] = {}
        self.is_finished = False
        self.discarded: str | None = None
        self.moved: str | None = None
        self.is_on_other_devices = False

    @property
    def recorded(self) -> RunFolder:
        """The run that this one is compared with and may go on with; it need not exist."""
        return RunFolder(self._output.root_of(self._found))

    def recorded_identity(self) -> Identity | None:
        """The content of the data when that run was last started, or None if it is not recorded or damaged."""
        with suppress(FormatError, InputError):
            return Identity.from_dict(read_json(self.recorded.inputs), self.recorded.inputs)
        return None

    def recorded_data(self) -> str | None:
        """The digest of the data of that run."""
        if self._found is None:
            return None
        return _inputs_of(self._found, self.recorded).get("data")

    def examine(self, recipe_yaml: str, environment: dict[str, Any], identity: Identity | None) -> dict[str, Any]:
        """Decide how to go on; returns the environment to record.

        Sets ``is_finished``; ``discarded``: how an unfinished run that was to replace the old one differs;
        ``moved``: how the hardware differs from that of a run that is resumed, which then rounds differently; and
        ``is_on_other_devices``: whether their number does, so that the threads are not those from before.

        Args:
            recipe_yaml: the text of the resolved recipe.
            environment: the result of `describe_environment`. Its ``inputs`` (fingerprints of data and initial weights
                by name) must be the same as before; everything else may differ, and the latest is recorded.
            identity: the content of the data, to say what has changed.

        Raises `OutputError` if the run at this place has another recipe or other inputs, unless it may be replaced or
        has not got as far as its first checkpoint.
        """
        inputs = environment.get("inputs", {})
        self._request = {"recipe": digest_of(recipe_yaml), "inputs": inputs, "overwrite": self._overwrite}
        run, found = self.recorded, self._found
        if found is not None and (run.is_started or found.state == "complete"):
            different = _difference(found, run, recipe_yaml, inputs, identity)
            if different is None:
                self._resume = found
                self.is_finished = not self._overwrite and found.state == "complete" and self._is_whole(found)
                before = _environment_of(run)
                self.is_on_other_devices = before.get("devices", 1) != environment.get("devices", 1)
                environment, self.moved = _continued(environment, before)
            elif not self._overwrite:
                raise different
            else:
                self.discarded = different.problem
        if self._overwrite and self._resume is None:
            self._output.check_replaceable(self._inputs, self._old())
        return environment

    def _is_whole(self, claim: Claim) -> bool:
        """Whether all files of a finished run are there; if so many are missing that it cannot be, `OutputError`."""
        root = self._output.path
        needed = [name for name in claim.files if name.startswith(_NEEDED)]
        broken = [name for name in needed if not (root / name).is_file() or not (root / name).stat().st_size]
        if broken and not any(RunFolder(root).checkpoints.glob("step_*")):
            raise OutputError(
                "files of this finished run are missing or empty",
                where=self.out,
                got=listed(broken),
                remedy=f"copy them back, or {OTHER_RUN}",
            )
        return not broken

    def _old(self) -> Files | None:
        """The files of an unfinished run that is replaced, which its claim does not know; None: the claim does."""
        claim = self._output.claim
        if not self._overwrite or claim is None or claim.state == "complete":
            return None
        return dict.fromkeys(files_of(RunFolder(self._output.path)))

    @property
    def replaces(self) -> bool:
        """Whether the run is written aside, because an old one is replaced once it is finished."""
        if self._resume is not None:
            return self._resume is self._output.pending
        old = self._old()
        return bool(old) if old is not None else self._output.is_complete

    @contextmanager
    def started(self, recipe_yaml: str, environment: dict[str, Any], identity: Identity | None) -> Iterator[RunFolder]:
        """Lock and claim the folder while the block runs; the run that is started, or goes on.

        environment: as `examine` returned it. Raises `OutputError` if the folder is in use or cannot be written.
        """
        output = self._output
        output.start(self._request, resume=self._resume, replaces=self._old() if self._resume is None else None)
        try:
            run = RunFolder(output.root)
            if self._resume is None:  # what a run left that ended before its first checkpoint
                for name in files_of(run):
                    if not name.startswith("model/"):  # may be the user's; see `training.loop`
                        remove_ours(run.root, name)
            write_text(run.recipe, recipe_yaml)
            write_json(run.environment, {"schema_version": SCHEMA_VERSION, **environment})
            if identity is not None:
                write_json(run.inputs, {"schema_version": SCHEMA_VERSION, **identity.to_dict()})
            try:
                run.checkpoints.mkdir(exist_ok=True)
            except OSError as error:
                raise output_error(self.out, error) from error
            yield run
        finally:
            output.close()

    def verify(self) -> None:
        """Raise `OutputError` if the folder was moved, removed or taken over since the run was started."""
        self._output.verify()

    def complete(self) -> None:
        """Declare the run finished, within `started`; an old one is replaced by it."""
        self._output.complete(files_of(RunFolder(self._output.root)))


class RepeatsOutput:
    """The folder around runs that differ in their seed, each of which has a claim of its own.

    With ``overwrite``, the records of the seeds that are done let an interrupted command go on after them.
    """

    def __init__(self, out: Path, recipe_yaml: str, *, overwrite: bool = False) -> None:
        self._output = OutputFolder(out, "train, repeated", earlier=_earlier_repeats)
        self._request = {"recipe": digest_of(recipe_yaml), "overwrite": overwrite}

    @contextmanager
    def started(self) -> Iterator[None]:
        """Lock and claim the folder while the block runs."""
        output, before = self._output, self._output.claim
        output.start(self._request, resume=before)
        try:
            if before is None or before.state == "complete" or before.request != self._request:
                for path in output.progress.iterdir():
                    path.unlink()
            yield
        finally:
            output.close()

    def is_done(self, seed: int) -> bool:
        """Whether the run of a seed was finished by this command, before it was interrupted."""
        return (self._output.progress / f"seed_{seed}").is_file()

    def done(self, seed: int) -> None:
        """Record that the run of a seed is finished."""
        self._output.verify()
        write_text(self._output.progress / f"seed_{seed}", "")

    def complete(self) -> None:
        """Declare that all runs are finished."""
        self._output.complete([name for name in (REPEATS, REPORT) if (self._output.root / name).is_file()])


def files_of(run: RunFolder) -> list[str]:
    """The files of a run by their names relative to it; other files in its folder are not ours."""
    return [name for name in files_below(run.root) if _NAMES.fullmatch(name)]


def _is_unfinished_overwrite(claim: Claim) -> bool:
    return claim.state == "writing" and claim.request is not None and claim.request.get("overwrite") is True


def _earlier_run(folder: Path) -> Claim | None:
    """The claim on a run of a version without claims."""
    run = RunFolder(folder)
    if not run.recipe.is_file() or not isinstance(_environment_of(run).get("inputs"), Mapping):
        return None
    names = dict.fromkeys(files_of(run))
    return Claim("train", None, "complete", names) if run.done.is_file() else Claim("train", None, "writing")


def _earlier_repeats(folder: Path) -> Claim | None:
    """The claim on repeated runs of a version without claims."""
    with suppress(FormatError, InputError):
        content = read_json(folder / REPEATS)
        if isinstance(content, dict) and isinstance(content.get("runs"), list):
            return Claim("train, repeated", None, "complete", {REPEATS: None})
    return None


def _environment_of(run: RunFolder) -> Mapping[str, Any]:
    """The recorded environment; empty if it cannot be read."""
    with suppress(FormatError, InputError):
        content = read_json(run.environment)
        return content if isinstance(content, Mapping) else {}
    return {}


def _continued(now: dict[str, Any], before: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The environment ``now`` of a run that goes on, and what differs from ``before`` in a way that changes rounding.

    A run keeps its number of threads on as many devices, because another number rounds differently, and float32. What
    began in another precision goes on in that of this machine, which may be many times slower otherwise; ``began_in``
    records it.
    """
    now, precision = dict(now), before.get("precision")
    devices = before.get("devices", 1), now.get("devices", 1)
    if type(before.get("threads")) is int and devices[0] == devices[1]:
        now["threads"] = before["threads"]
    if precision == "float32":
        now["precision"] = precision
    began_in = before.get("began_in", precision)
    if began_in is not None and began_in != now.get("precision"):
        now["began_in"] = began_in
    differing = [
        f"{now[key]} instead of {before[key]}"
        for key in ("device", "gpu", "processor", "precision")
        if isinstance(before.get(key), str) and now.get(key) is not None and _kind(now[key]) != _kind(before[key])
    ]
    if devices[0] != devices[1]:
        differing.append(f"{count(devices[1], 'device')} instead of {devices[0]}")
    return now, ", ".join(differing) or None


def _kind(value: str) -> str:
    """A device without its number."""
    return value.partition(":")[0]


def _inputs_of(claim: Claim, run: RunFolder) -> Mapping[str, str]:
    recorded = (_environment_of(run) if claim.request is None else claim.request).get("inputs")
    return recorded if isinstance(recorded, Mapping) else {}


def _difference(
    claim: Claim, run: RunFolder, recipe_yaml: str, inputs: Mapping[str, str], identity: Identity | None
) -> OutputError | None:
    """The error that says how the recipe or the inputs differ from those of a run; None if they are the same."""
    before = None
    with suppress(FormatError, InputError):
        before = read_text(run.recipe)
    digest = None if before is None else digest_of(before)
    recorded = digest if claim.request is None else claim.request.get("recipe")
    if recorded != digest_of(recipe_yaml):
        got = _first_difference(before, recipe_yaml) if before is not None and recorded == digest else None
        return OutputError("this run was started with another recipe", where=run.recipe, got=got, remedy=OTHER_RUN)
    then = _inputs_of(claim, run)
    for name in sorted({*then, *inputs}):
        was, now = then.get(name), inputs.get(name)
        if was != now:
            earlier = None
            if name == "data":
                with suppress(FormatError, InputError):
                    earlier = Identity.from_dict(read_json(run.inputs), run.inputs)
            changes = [] if earlier is None or identity is None else identity.changes(earlier)
            return OutputError(
                f"this run was started with another input ({name})",
                where=run.root,
                got="changed since: " + "; ".join(changes) if changes else now,
                expected=None if changes else was,
                remedy=OTHER_RUN,
            )
    return None


def _first_difference(before: str, now: str) -> str:
    lines_before, lines_now = before.splitlines(), now.splitlines()
    for old, new in zip(lines_before, lines_now, strict=False):
        if old != new:
            return f"{new.strip()!r} instead of {old.strip()!r}"
    longer = max(lines_before, lines_now, key=len)
    return f"the line {longer[min(len(lines_before), len(lines_now))].strip()!r} is in one of them only"

"""The command line: verbs, exit codes, and nothing else; all work goes through `cellwright.api`.

Exit codes: 0 done; 1 our bug (a report is left); 2 input or usage; 3 finished, some inputs failed; 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from cyclopts import App, CycloptsError

from cellwright import __version__
from cellwright.cli import data_verbs, model_verbs, result_verbs
from cellwright.core.errors import CellwrightError

app = App(
    name="cellwright",
    version=__version__,
    help="Segment every cell or nucleus in a microscopy image as its own object.",
    suppress_keyboard_interrupt=False,  # `main` prints the line that goes on
)
for verbs in (model_verbs.VERBS, result_verbs.VERBS):
    for verb_name, handler in verbs.items():
        app.command(handler, name=verb_name)
for group_name, (help_text, verbs) in {**data_verbs.GROUPS, **model_verbs.GROUPS}.items():
    group = App(name=group_name, help=help_text)
    for verb_name, handler in verbs.items():
        group.command(handler, name=verb_name)
    app.command(group)


def main(argv: list[str] | None = None) -> None:
    """The ``cellwright`` command; always leaves by `SystemExit`."""
    words = sys.argv[1:] if argv is None else argv
    try:
        code = app(words, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        sys.exit(2)
    except CellwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command goes on: cellwright {shlex.join(words)}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
    except Exception:  # noqa: BLE001 - what reaches this line is our bug, and the user gets a report to send
        sys.exit(_report_bug(words))
    sys.exit(code if isinstance(code, int) else 0)


def _report_bug(words: list[str]) -> int:
    text = f"cellwright {__version__}, Python {sys.version}\ncommand: cellwright {shlex.join(words)}\n\n"
    text += traceback.format_exc()
    with tempfile.NamedTemporaryFile("w", prefix="cellwright-bug-", suffix=".txt", delete=False) as file:
        file.write(text)
    last = text.strip().splitlines()[-1]
    print(f"this is a bug in cellwright: {last}\n  report: {Path(file.name)}", file=sys.stderr)
    return 1

"""The command line: ``cellwright`` and ``python -m cellwright``. Signals are handled before all other imports."""

import atexit
import gc
import sys

from cellwright.core.interrupts import CommandSignals, handle_signals


def main() -> None:
    """The ``cellwright`` command; always raises `SystemExit`."""
    gc.disable()  # while modules are imported, which stay; `run` enables it
    atexit.register(gc.freeze)  # Python would search all modules for garbage before it exits: .3 s
    signals = CommandSignals()
    with handle_signals(signals):
        sys.unraisablehook = signals.on_unraisable
        from cellwright.cli.app import main as run

        run(signals=signals)


if __name__ == "__main__":
    main()

"""``python -m cellwright``: the command line."""

from cellwright.cli.app import main

main()

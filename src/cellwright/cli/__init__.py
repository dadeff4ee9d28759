"""The command line: options, display and exit codes. All work is done in `cellwright.api`."""

"""The Python front door: everything the command line does, as functions. `cellwright` itself names the public ones."""

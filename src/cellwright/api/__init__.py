"""One file per verb: its plan (the options), ``run(plan)``, and the public function beside it.

The command line (`cellwright.cli`) and Python share these files; `cellwright` exports the public names.
"""

"""Conformance suites for your own formats and models.

`check_format`, `check_segmenter` and `check_network` run every check; a failure raises `AssertionError` with a message
that says what was expected. `format_checks` and `segmenter_checks` return the same checks by name, to run them one by
one, for example as parametrised pytest tests:

    CHECKS = format_checks(MyFormat(), Carries(scores=False))

    @pytest.mark.parametrize("name", CHECKS)
    def test_my_format(name, tmp_path):
        CHECKS[name](tmp_path)

The suites need nothing but cellwright itself. ``docs/extending.md`` shows them in use.
"""

from __future__ import annotations

from cellwright.testing.formats import Carries, check_format, format_checks
from cellwright.testing.networks import check_network
from cellwright.testing.segmenters import check_segmenter, segmenter_checks

__all__ = ["Carries", "check_format", "check_network", "check_segmenter", "format_checks", "segmenter_checks"]

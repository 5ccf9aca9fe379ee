"""Tests of the whole project; shared pieces are in conftest.py and in modules that are no test_*.py."""

import pytest

pytest.register_assert_rewrite("tests.server", "tests.browser.desk")

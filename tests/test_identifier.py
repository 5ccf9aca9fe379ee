"""storage: the names of rows and pages can be said to a command line."""

from __future__ import annotations

import argparse
import re

from storage.identifier import new_id


def test_a_name_is_no_option():
    parser = argparse.ArgumentParser()
    parser.add_argument("--share")
    parser.add_argument("id")
    names = {new_id(9) for _ in range(2000)}  # without care, one in 64 begins with "-"
    assert len(names) == 2000
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{11}", name)
        assert parser.parse_args(["--share", name, name]) == argparse.Namespace(share=name, id=name)

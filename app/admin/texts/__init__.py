"""Every sentence that staff can read under /admin, in English and Chinese: one file for each tab, and shell.py for what all share.

A file here has `TEXTS = {"en": {key: text}, "zh": {key: text}}`; its keys begin with the file's name and a point, and both
languages have the same ones. `{name}` in a text is replaced by the caller. A file that is added is found by itself.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from app.ui.texts import LANGUAGES


@cache
def merged() -> dict[str, dict[str, str]]:
    """All texts of all files: language -> key -> text. `title` and `language` are what static/language.js asks for."""
    whole: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    for module in iter_modules(__path__):
        texts = import_module(f"{__name__}.{module.name}").TEXTS
        for language in LANGUAGES:
            whole[language] |= texts[language]
    for texts in whole.values():
        texts["title"], texts["language"] = texts["shell.title"], texts["shell.language"]
    return whole

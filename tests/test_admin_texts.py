"""The staff's page without a browser: its texts are complete and used, its files local and safe."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest

from app.admin import page, texts
from app.ui.texts import LANGUAGES

SCRIPTS = sorted(page.FILES.glob("*.js"))
STYLES = sorted(page.FILES.glob("*.css"))
MODULES = [module.name for module in iter_modules(texts.__path__)]
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.mark.parametrize("name", MODULES)
def test_both_languages_say_the_same_under_the_tabs_own_keys(name: str) -> None:
    told = import_module(f"app.admin.texts.{name}").TEXTS
    assert set(told) == set(LANGUAGES) and set(told["en"]) == set(told["zh"])
    for key, words in told["en"].items():
        assert key.startswith(f"{name}."), key
        for one in (words, told["zh"][key]):
            assert one and one.strip() == one, key
        assert set(re.findall(r"{\w+}", words)) == set(re.findall(r"{\w+}", told["zh"][key])), key
        assert not HAN.search(words), key


def test_every_text_that_a_script_names_exists_and_every_text_is_named() -> None:
    sources = "".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
    literals = set(re.findall(r"[\"'`]([a-z_]+(?:\.\w+)+)[\"'`]", sources))
    beginnings = tuple(set(re.findall(r"[\"'`]([a-z_]+\.[\w.]*)\${", sources)))
    endings = tuple(set(re.findall(r"\${\w+}(\.[\w.]+)[\"'`]", sources)))
    known = set(texts.merged()["en"])
    families = {key.partition(".")[0] for key in known if "." in key}
    files = (".js", ".css", ".txt", ".json", ".jsonl")
    named = {one for one in literals if one.partition(".")[0] in families and not one.endswith(files)}
    assert named - known - {one for one in named if one.startswith("glm.")} == set()
    used = {key for key in known if key in literals or key.startswith(beginnings) or key.endswith(endings)}
    assert known - used == {"title", "language", "shell.language", "shell.noscript"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_keep_to_the_policy(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert forbidden not in source, forbidden
    assert not re.search(r"[\"'`]https?://", source.replace("http://www.w3.org/2000/svg", ""))
    styled = re.findall(r"[{,]\s*style: ?[\"'`](\w+)", source)
    assert set(styled) <= {"percent", "unit"}, "the policy forbids style attributes"


@pytest.mark.parametrize("path", STYLES, ids=lambda path: path.name)
def test_styles_fetch_nothing(path: Path) -> None:
    assert "url(" not in path.read_text(encoding="utf-8") and "@import" not in path.read_text(encoding="utf-8")


def test_every_tab_has_its_script_and_its_name() -> None:
    for name in page.TABS:
        assert (page.FILES / f"{name}.js").is_file(), name
        assert f"shell.tab.{name}" in texts.merged()["en"], name

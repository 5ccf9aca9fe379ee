"""The page without a browser: its texts are complete, its files are safe and local, its components are what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from app.errors import TABLE, sentences
from app.schemas import ALTERNATIVES, Parameters
from app.ui import playground
from app.ui.texts import EXAMPLES, LANGUAGES, TEXTS
from engine.glm.blanks import MASKS

STATIC = playground.STATIC
SCRIPTS = sorted(STATIC.glob("*.js"))
OWN_FILES = [path for path in sorted(STATIC.iterdir()) if path.suffix in (".js", ".css", ".svg", ".html")]
HAN = re.compile(r"[\u4e00-\u9fff]")


def used_texts() -> tuple[set[str], set[str]]:
    """(keys, beginnings of keys) that the page's code names: text("a.b"), bind(node, `a.${name}`), "label": "a.b" ..."""
    sources = [path.read_text(encoding="utf-8") for path in SCRIPTS]
    sources.append(Path(playground.__file__).read_text(encoding="utf-8"))
    literals = {found for source in sources for found in re.findall(r"[\"'`]([a-z_]+(?:\.[a-z_.]+)?)[\"'`]", source)}
    beginnings = {found for source in sources for found in re.findall(r"[\"'`]([a-z_]+\.)[{$]", source)}
    return literals, beginnings


@pytest.mark.parametrize("language", TEXTS)
def test_no_text_is_missing_or_empty(language: str) -> None:
    assert set(TEXTS) == set(EXAMPLES["chat"]) == set(EXAMPLES["blanks"]) == set(EXAMPLES["complete"]) == set(LANGUAGES)
    assert set(TEXTS[language]) == set(TEXTS["en"])
    for key, text in TEXTS[language].items():
        assert text.strip() == text != "", key
        assert set(re.findall(r"{\w+}", text)) == set(re.findall(r"{\w+}", TEXTS["en"][key])), key


def test_chinese_is_chinese_and_english_is_english() -> None:
    names = {"top_k", "top_p"}  # the same in both
    for key in TEXTS["en"]:
        assert not HAN.search(TEXTS["en"][key]), key
        assert key in names or HAN.search(TEXTS["zh"][key]), key


def test_every_text_is_used_and_every_used_text_exists() -> None:
    literals, beginnings = used_texts()
    # `{name}.help` and the settings' labels are made from the names of the components, which are literals too.
    unused = {
        key
        for key in TEXTS["en"]
        if key not in literals and not key.startswith(tuple(beginnings)) and key.removesuffix(".help") not in literals
    }
    assert not unused
    families = {key.split(".")[0] for key in TEXTS["en"] if "." in key}
    named = {key for key in literals if "." in key and key.split(".")[0] in families and not key.endswith(".css")}
    assert not named - set(TEXTS["en"])
    assert {f"status.{state}" for state in ("connecting", "ready", "loading", "reconnecting", "down")} <= set(
        TEXTS["en"]
    )


def test_every_error_kind_has_a_sentence_and_a_next_step_in_both_languages() -> None:
    for kind, entry in TABLE.items():
        assert entry.en and not HAN.search(entry.en), kind
        assert HAN.search(entry.zh), kind
        assert entry.step_en and not HAN.search(entry.step_en), kind
        assert HAN.search(entry.step_zh), kind


def test_every_example_of_the_blanks_has_one() -> None:
    for texts in EXAMPLES["blanks"].values():
        assert any(text.count("[MASK]") == 2 for text in texts)
        assert all(any(mask in text for mask in MASKS) for text in texts)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_never_parse_text_as_markup(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "DOMParser"):
        assert way not in source, way


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_files_name_no_other_host(path: Path) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w-]+\.[\w./-]+", path.read_text(encoding="utf-8")))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of a format, which nobody fetches


def test_scripts_import_only_what_is_there() -> None:
    for path in SCRIPTS:
        for name in re.findall(r"from \"\./([\w.]+)\"", path.read_text(encoding="utf-8")):
            assert (STATIC / name).is_file(), f"{path.name} imports {name}"
    for name in re.findall(r"static/([\w.]+)", playground.page_head() + playground.IMPORT):
        assert (STATIC / name).is_file()


def test_the_page_fetches_every_script_that_it_needs_at_once() -> None:
    named = re.findall(r'rel="modulepreload" href="static/([\w.]+)"', playground.page_head())
    assert named[0] == "playground.js" and len(named) == len(set(named))
    needed = {other for name in named for other in re.findall(r'from "\./([\w.]+)"', (STATIC / name).read_text())}
    assert set(named) == needed | {"playground.js"}


def test_presets_and_limits_are_what_the_server_accepts() -> None:
    page = playground.build(None, {"max_new_tokens": 77})
    controls = {block.elem_id: block for block in page.blocks.values()}
    for values in playground.PRESETS.values():
        Parameters(**dict(zip(playground.PRESET_FIELDS, values, strict=True)))
    for name in (*playground.PRESET_FIELDS, "max_new_tokens", "alternatives"):
        slider = controls[f"glm-{name}"]
        Parameters(**{name: slider.maximum})
        if name != "max_new_tokens":  # there 0 means: not sent
            Parameters(**{name: slider.minimum})
    assert controls["glm-max_new_tokens"].maximum == 77
    assert controls["glm-alternatives"].maximum == ALTERNATIVES


def test_the_shell_is_gradio_and_everything_has_an_id() -> None:
    page = playground.build(None, lambda: {"max_new_tokens": None})
    blocks = list(page.blocks.values())
    assert [block.id for block in blocks if block.get_block_name() == "tabitem"] == list(playground.PANES)
    for block in blocks:
        # Gradio puts neighbouring settings into forms by itself; those have no ids.
        assert block.elem_id or block.get_block_name() in ("form", "blocks"), block.get_block_name()
    ids = [block.elem_id for block in blocks if block.elem_id]
    assert len(ids) == len(set(ids))
    # No listener needs the server: the page works while the model loads, and a slow server makes no slider slow.
    assert all(not dependency.fn for dependency in page.fns.values())
    assert all(dependency.js for dependency in page.fns.values())


def test_mounting_brings_texts_and_no_foreign_fonts() -> None:
    assert playground.mount_arguments()["theme"]._stylesheets == []
    head = playground.page_head()
    assert "http" not in re.sub(r"<script.*?</script>", "", head)
    data = re.search(r'<script type="application/json" id="glm-texts">(.*?)</script>', head)
    assert data and json.loads(data[1]) == {
        "texts": TEXTS,
        "errors": sentences(),
        "examples": EXAMPLES,
        "languages": LANGUAGES,
        "presets": {
            name: dict(zip(playground.PRESET_FIELDS, values, strict=True))
            for name, values in playground.PRESETS.items()
        },
    }

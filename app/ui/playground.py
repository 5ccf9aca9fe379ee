"""The playground page: a Gradio shell around the project's own streaming panes.

build(settings, info) -> gr.Blocks lays out the page: the header, the tabs, the sampling settings. mount_arguments() is what
gr.mount_gradio_app needs beside it (theme, footer ...), page_head() what stands in the document's head. The host must serve
the files of static/ at `static/` below the page, with Gradio's own files of that name behind them (Gradio asks for
`static/js/...` at the same place).

Who does what. Gradio is the shell: layout, tabs, and the settings as real Gradio components. The panes are own
JavaScript (static/playground.js) in gr.HTML, because they must resume, stop and stream over /ws. Both meet only where
Gradio documents it: js_on_load mounts a pane, and client-side listeners (`fn=None, js=...`) hand the settings' values
to the panes and take label updates back when the language changes. Nothing of it asks the server, and a pane reads
the values only when a run starts, so the bridge can't get between a visitor and the stream.

A new tab is one more name in PANES, its texts in texts.py and its class in static/playground.js.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from app.errors import sentences
from app.schemas import BEAMS
from app.ui.head import head
from app.ui.texts import EXAMPLES, LANGUAGES, TEXTS

#: The tabs, in order, by their names in static/playground.js
PANES: tuple[str, ...] = ("chat", "blanks", "complete", "compare")

#: Values of a preset, in the order of PRESET_FIELDS
PRESET_FIELDS: tuple[str, ...] = ("temperature", "top_k", "top_p", "repetition_penalty")
PRESETS: dict[str, tuple[float, int, float, float]] = {
    "precise": (0.0, 0, 1.0, 1.0),
    "balanced": (0.6, 40, 0.9, 1.0),
    "creative": (1.0, 0, 0.95, 1.1),
}
DEFAULT_PRESET = "balanced"

#: Style sheets of static/, in order
STYLES: tuple[str, ...] = (
    "style.css",
    "chat.css",
    "canvas.css",
    "panes.css",
    "history.css",
    "privacy.css",
    "shared_view.css",
)

STATIC = Path(__file__).resolve().parents[2] / "static"
FONTS = ("system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
MONOSPACE = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono CJK SC", "monospace")

#: Text keys of labels that aren't the parameter's name: "stop" is the button that stops
LABELS = {"stop": "stop_strings"}

#: Of every listener: nothing is asked of the server, so there is no progress to show and no queue
QUIET: dict[str, Any] = {"show_progress": "hidden", "queue": False}

# The module is loaded once, however often it is imported. The address is relative, so a path prefix of a proxy holds.
IMPORT = "import(new URL('static/playground.js', document.baseURI))"


def build(settings: Any, info: Callable[[], Mapping[str, Any]] | Mapping[str, Any] | None = None) -> gr.Blocks:
    """The page. `settings` are the application's; `info` (or what it returns) may hold `max_new_tokens`, the longest
    answer the loaded model allows. Before a model is loaded a common limit stands there until the page learns the
    model's own."""
    known = dict((info() if callable(info) else info) or {})
    with gr.Blocks(title=TEXTS["en"]["title"], analytics_enabled=False, fill_width=False) as page:
        header = gr.HTML(
            js_on_load=f"{IMPORT}.then((page) => page.mountHeader(element, () => trigger('refresh')))",
            html_template="",
            elem_id="glm-header-block",
            container=False,
            apply_default_css=False,
        )
        translated: list[tuple[gr.blocks.Block, dict[str, Any]]] = []
        with gr.Row(elem_id="glm-page"):
            with gr.Column(scale=3, min_width=320, elem_id="glm-panes"):
                with gr.Tabs(elem_id="glm-tabs") as tabs:
                    for name in PANES:
                        with gr.Tab(TEXTS["en"][f"tab.{name}"], id=name, elem_id=f"glm-tab-{name}") as tab:
                            gr.HTML(
                                js_on_load=f"{IMPORT}.then((page) => page.mountPane('{name}', element))",
                                html_template="",
                                elem_id=f"glm-pane-{name}",
                                container=False,
                                apply_default_css=False,
                            )
                        tab.select(None, js=f"() => {{ {IMPORT}.then((page) => page.takeTab('{name}')); }}", **QUIET)
                        translated.append((tab, {"label": f"tab.{name}"}))
                translated.append((tabs, {"name": "tabs"}))
            with gr.Column(scale=1, min_width=300, elem_id="glm-settings-column"):
                with gr.Accordion(TEXTS["en"]["settings"], open=True, elem_id="glm-settings") as accordion:
                    preset, controls, more = _controls(int(known.get("max_new_tokens") or 512))
                translated += [(accordion, {"label": "settings"}), (more, {"label": "settings.more"})]
        choices = [[f"preset.{name}", name] for name in PRESETS]
        translated.append((preset, {"name": "preset", "label": "preset", "info": "preset.help", "choices": choices}))
        for name, control in controls.items():
            label = LABELS.get(name, name)
            translated.append((control, {"name": name, "label": label, "info": f"{name}.help"}))
        _listen(page, header, preset, controls, translated)
    return page


def page_head() -> str:
    """What head.PageHead puts into the page: texts, styles, and the scripts, so that they are fetched at once."""
    presets = {name: dict(zip(PRESET_FIELDS, values, strict=True)) for name, values in PRESETS.items()}
    data = {
        "texts": TEXTS,
        "errors": sentences(),
        "examples": EXAMPLES,
        "languages": LANGUAGES,
        "presets": presets,
    }
    return head(data, STYLES, imported("playground.js"))


def imported(script: str) -> list[str]:
    """A script of static/ and all that it imports, each once."""
    found = [script]
    for name in found:
        source = (STATIC / name).read_text(encoding="utf-8")
        found += [other for other in re.findall(r'from "\./([\w.]+)"', source) if other not in found]
    return found


def mount_arguments() -> dict[str, Any]:
    """Keyword arguments for gr.mount_gradio_app(app, page, path, **mount_arguments())."""
    theme = gr.themes.Soft(primary_hue="indigo", secondary_hue="indigo", font=FONTS, font_mono=MONOSPACE)
    # Plain labels: the theme's coloured ones draw the eye to the settings, away from the text.
    for shade in ("", "_dark"):
        theme.set(
            **{
                f"block_title_background_fill{shade}": "transparent",
                f"block_title_text_color{shade}": "*body_text_color",
            }
        )
    theme.set(block_title_padding="0", block_title_text_weight="600", color_accent="*primary_600")
    theme.set(checkbox_label_padding="5px 8px", checkbox_label_background_fill_selected="*primary_600")
    theme.set(checkbox_label_background_fill_selected_dark="*primary_600", slider_color="*primary_600")
    theme.set(input_border_width="1px", input_border_color="*neutral_300", input_border_color_dark="*neutral_600")
    # Its grey for small text is below the contrast of 4.5 that small text needs.
    theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")
    theme.set(block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_400")
    return {
        "theme": theme,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "favicon_path": str(STATIC / "favicon.svg"),
    }


def _controls(longest: int) -> tuple[gr.Radio, dict[str, gr.components.Component], gr.Accordion]:
    """The settings: the preset, the parameters by their names in a request, and the part for the rarer ones."""
    texts = TEXTS["en"]
    values = dict(zip(PRESET_FIELDS, PRESETS[DEFAULT_PRESET], strict=True))
    preset = gr.Radio(
        [(texts[f"preset.{name}"], name) for name in PRESETS],
        value=DEFAULT_PRESET,
        label=texts["preset"],
        info=texts["preset.help"],
        elem_id="glm-preset",
    )

    def slider(name: str, low: float, high: float, step: float, value: float) -> gr.Slider:
        shown = {"label": texts[name], "info": texts[f"{name}.help"], "elem_id": f"glm-{name}"}
        return gr.Slider(low, high, value=value, step=step, buttons=[], **shown)

    controls: dict[str, gr.components.Component] = {
        "temperature": slider("temperature", 0, 2, 0.05, values["temperature"]),
        "top_k": slider("top_k", 0, 200, 1, values["top_k"]),
        "top_p": slider("top_p", 0.05, 1, 0.05, values["top_p"]),
        "repetition_penalty": slider("repetition_penalty", 1, 2, 0.05, values["repetition_penalty"]),
        "max_new_tokens": slider("max_new_tokens", 0, longest, 1, 0),
        # A Textbox, since an empty gr.Number shows 0, and empty means "a new seed each time" here.
        "seed": gr.Textbox("", label=texts["seed"], info=texts["seed.help"], max_lines=1, elem_id="glm-seed"),
        "alternatives": slider("alternatives", 1, 8, 1, 3),
    }
    with gr.Accordion(texts["settings.more"], open=False, elem_id="glm-settings-more") as more:
        controls |= {
            "no_repeat_ngram": slider("no_repeat_ngram", 0, 10, 1, 0),
            "min_new_tokens": slider("min_new_tokens", 0, longest, 1, 0),
            "stop": gr.Textbox("", label=texts["stop_strings"], info=texts["stop.help"], lines=2, elem_id="glm-stop"),
            "num_beams": slider("num_beams", 1, BEAMS, 1, 1),
            "length_penalty": slider("length_penalty", -2, 4, 0.1, 1),
            "sampled_beams": gr.Checkbox(
                False, label=texts["sampled_beams"], info=texts["sampled_beams.help"], elem_id="glm-sampled_beams"
            ),
        }
    return preset, controls, more


def _listen(
    page: gr.Blocks,
    header: gr.HTML,
    preset: gr.Radio,
    controls: dict[str, gr.components.Component],
    translated: list[tuple[gr.blocks.Block, dict[str, Any]]],
) -> None:
    """Connects the components in the browser; no listener here has a Python function."""
    outputs = [component for component, _ in translated]
    parts = json.dumps([part for _, part in translated])
    names = json.dumps(list(controls))
    inputs = list(controls.values())

    page.load(None, None, outputs, js=f"() => {IMPORT}.then((page) => page.updates({parts}, true))", **QUIET)
    header.refresh(None, None, outputs, js=f"() => {IMPORT}.then((page) => page.updates({parts}, false))", **QUIET)

    take = f"(...values) => {IMPORT}.then((page) => page.takeSettings({names}, values))"
    page.load(None, inputs, None, js=take, **QUIET)
    for control in inputs:
        control.change(None, inputs, None, js=take, **QUIET)
    # The events below are only sent for what a person does: choosing a preset moves the sliders, moving a slider
    # leaves the preset.
    fields = [controls[name] for name in PRESET_FIELDS]
    preset.input(None, preset, fields, js=f"(name) => ({json.dumps(PRESETS)})[name]", **QUIET)
    for field in fields:
        field.input(None, None, preset, js="() => null", **QUIET)

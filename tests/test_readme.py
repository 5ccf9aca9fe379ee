"""The README is true: every setting, command, option, event and file that it names exists, and none is missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.settings import Settings, flag
from engine.__main__ import SUMMARIES
from engine.commands.plan import hardware_table
from engine.glm.config import PRESETS
from engine.serving import events
from engine.training.recipe import LowRank, Recipe, Scale
from tests.command_line import call

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_table_with_its_default(name: str) -> None:
    chapter = README.split("## The server")[1].split("\n## ")[0]
    rows = [line for line in chapter.splitlines() if line.startswith(f"| `{flag(name)}` |")]
    assert len(rows) == 1, f"{flag(name)} has {len(rows)} rows"
    field = Settings.model_fields[name]
    assert (field.description or "").rstrip() in rows[0].replace("\\|", "|")
    if name != "database":
        default = field.get_default()
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        assert f"| {shown or 'none'} |" in rows[0]


def test_every_flag_in_the_readme_exists() -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", call("app", "--help").stdout))
    for command in SUMMARIES:
        known |= set(re.findall(r"--[a-z][a-z-]+", call("engine", command, "--help").stdout))
    for benchmark in ("peers", "websocket", "shared_prompt", "record", "evaluation"):
        known |= set(re.findall(r"--[a-z][a-z-]+", call(f"tests.benchmarks.{benchmark}", "--help").stdout))
    known |= {"--index-url", "--reference", "--nproc-per-node"}  # pip's, pytest's, torchrun's
    known |= {"--hostfile", "--no", "--module"}  # the deepspeed launcher's (--no_local_rank)
    for command in ("migrate", "stats", "export", "import", "prune", "delete-visitor", "receipt"):
        known |= set(re.findall(r"--[a-z][a-z-]+", call("storage", command, "--help").stdout))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= known


def test_every_option_of_generate_is_in_the_readme() -> None:
    options = set(re.findall(r"^\s+(--[a-z][a-z-]+)", call("engine", "generate", "--help").stdout, re.MULTILINE))
    assert options
    assert {option for option in options if f"`{option}`" not in README} == set()


def test_every_make_target_in_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", README)) | set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))
    assert {"demo", "test", "test-heavy", "setup"} <= named <= targets


def test_every_event_is_documented() -> None:
    kinds = {event.type for event in vars(events).values() if isinstance(event, type) and hasattr(event, "type")}
    assert {"queued", "started", "delta", "blank", "done", "cancelled", "error"} <= kinds
    for kind in kinds | {"accepted"}:
        assert f'"type": "{kind}"' in README, kind


def test_every_link_and_picture_is_there() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_hardware_table_is_what_plan_prints() -> None:
    assert hardware_table(PRESETS["glm-130b"]).strip() in README


def test_every_engine_command_is_in_the_readme() -> None:
    named = set(re.findall(r"python -m engine\s+([a-z]+)", README))
    assert named == set(SUMMARIES)


def test_every_field_of_a_recipe_is_in_the_readme() -> None:
    chapter = README.split("## Train and fine-tune")[1].split("\n## ")[0]
    fields = {*Recipe.model_fields, *Scale.model_fields, *LowRank.model_fields}
    assert {field for field in fields if f"`{field}`" not in chapter} == set()


def test_the_recipe_in_the_readme_is_one(tmp_path: Path) -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", README.split("## Train and fine-tune")[1], re.DOTALL)
    (tmp_path / "my-recipe.yaml").write_text(text)
    recipe = Recipe.load(tmp_path / "my-recipe.yaml")
    assert list(recipe.splits) == ["notes"] and recipe.stages[0].sources == ["notes"]

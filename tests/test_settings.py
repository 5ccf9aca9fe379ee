"""Every option: default, help line, environment, one sentence for a wrong value; the program's one line with the address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from app import settings
from app.settings import Settings, WrongSetting
from tests.server import PATIENCE, ROOT, Program

pytest_plugins = ("tests.server",)


def program(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "app", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, timeout=PATIENCE, check=False
    )


def test_help_explains_every_setting() -> None:
    shown = program("--help")
    assert shown.returncode == 0 and shown.stderr == ""
    words = " ".join(shown.stdout.split())
    for name, field in Settings.model_fields.items():
        assert settings.flag(name) in words
        assert field.description and field.description in words, name
    assert "GLM_PORT" in words and "(default: 7860)" in words


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--port", "x"], "--port (GLM_PORT)"),
        (["--port", "70000"], "65535"),
        (["--slots", "0"], "--slots"),
        (["--grace-seconds", "nan"], "finite"),
        (["--grace-seconds", "-1"], "--grace-seconds"),
        (["--log-level", "loud"], "'debug', 'info', 'warning' or 'error'"),
        (["--tensor-parallel", "0"], "--tensor-parallel"),
        (["--precision", "fp8"], "'fp32', 'fp16' or 'bf16'"),
        (["--quantize", "int3"], "'int4-g128'"),
        (["--offload", "tape"], "'none', 'host' or 'disk'"),
        (["--weights-budget", "12Gi"], "12GiB"),
        (["--quota", "lots"], "--quota (GLM_QUOTA): write a size"),
        (["--when-unwritable", "wait"], "'refuse' or 'answer'"),
        (["--device", "cuda"], "'auto' or 'cpu'"),
        (["--allowed-origins", "example.org"], "https://example.org"),
        (["--root-path", "glm"], "/path"),
        (["--colour", "red"], "--colour"),
        (["--por", "1"], "--por"),
        (["--host", ""], "--host"),
    ],
)
def test_a_wrong_value_is_one_sentence(flags: list[str], words: str) -> None:
    with pytest.raises(WrongSetting) as caught:
        Settings.from_arguments(flags)
    assert words in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_the_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLM_PORT", "1234")
    monkeypatch.setenv("GLM_ALLOWED_ORIGINS", "https://A.example, http://b.example:8000")
    monkeypatch.setenv("GLM_ACCESS_LOG", "true")
    given = Settings.from_arguments([])
    assert (given.port, given.access_log) == (1234, True)
    assert given.allowed_origins == ("https://a.example", "http://b.example:8000")
    given = Settings.from_arguments(["--port", "0", "--no-access-log"])
    assert (given.port, given.access_log) == (0, False)
    monkeypatch.setenv("GLM_PORT", "soon")
    with pytest.raises(WrongSetting, match="GLM_PORT"):
        Settings.from_arguments([])


def test_the_database_is_where_a_persons_data_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GLM_DATABASE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings.create().database == str(tmp_path / "glm-playground" / "glm.db")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.create().database == str(tmp_path / ".local" / "share" / "glm-playground" / "glm.db")
    assert not any(tmp_path.iterdir()), "looking creates nothing"


def test_a_database_address_is_never_repeated() -> None:
    """It may hold a password."""
    with pytest.raises(WrongSetting) as caught:
        Settings.create(database=["postgresql://user:secret@host/name"])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host, public",
    [("127.0.0.1", False), ("127.8.8.8", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True)],
)
def test_public_addresses_are_known(host: str, public: bool) -> None:
    assert Settings.create(host=host).is_public is public


def test_wrong_settings_end_the_program_with_one_sentence(tmp_path: Path, tiny_model_folder: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    somewhere = ["--database", str(tmp_path / "glm.db"), "--port", "0"]
    try:
        for flags, words in (
            (["--port", str(port)], f"port {port}"),
            (["--slots", "many"], "--slots"),
            (["--model", str(tmp_path), *somewhere], "model"),
            (["--model", str(tiny_model_folder), "--tensor-parallel", "3", *somewhere], "heads = 4"),
            (["--model", str(tiny_model_folder), "--weights-budget", "1GiB", *somewhere], "offload"),
            (["--database", "mysql://host/name", "--port", "0", "--model", str(tiny_model_folder)], "mysql"),
        ):
            ended = program(*flags)
            assert (ended.returncode, ended.stdout) == (2, ""), ended
            assert words in ended.stderr and ended.stderr.count("\n") == 1, ended.stderr
    finally:
        taken.close()


def test_a_database_that_cant_be_used_ends_the_program_with_one_sentence(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    (tmp_path / "glm.db").write_text("This is no database, but a file that was here before.")
    ended = program("--database", str(tmp_path / "glm.db"), "--port", "0", "--model", str(tiny_model_folder))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Traceback" not in ended.stderr and "database" in ended.stderr.splitlines()[-1]


def test_the_program_says_one_line_and_serves_the_page(tiny_model_folder: Path, tmp_path: Path) -> None:
    running = Program(tiny_model_folder, tmp_path / "data" / "glm.db", "--root-path", "")
    try:
        assert running.line == f"GLM Playground: http://127.0.0.1:{running.port}/\n"
        # The page is there before the model is.
        page = running.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 200 and "glm_visitor=" in page.headers["set-cookie"]
        assert "traceback" not in page.text.lower()
        assert running.get("/static/socket.js").status_code == 200
        assert running.get("/api/nothing").json()["error"]["kind"] == "not_found"
        running.wait_until_ready()
        # An open page holds a stream that never ends by itself. It must not hold up the end of the server.
        with httpx.stream("GET", running.http + "/gradio_api/heartbeat/some-session", timeout=PATIENCE) as heartbeat:
            assert heartbeat.status_code == 200
            output, errors = running.stop(signal.SIGINT)
    finally:
        running.stop(signal.SIGKILL)
    # The first start says where the administrator's password is, and nothing else.
    file = tmp_path / "data" / "glm-admin-password.txt"
    assert output == f"For staff: /admin. The password of the account `admin` is in {file}\n"
    assert (errors, running.process.returncode) == ("", 0) and file.read_text().strip() not in output
    assert (tmp_path / "data" / "glm.db").stat().st_mode & 0o077 == 0

"""Every option of the server, with its default and its help line: one place for the flags, the environment and the README.

    Settings.from_arguments(["--port", "0"])      # flag before environment (GLM_PORT) before default

A value that can't be used ends in one sentence (`WrongSetting`), never in a traceback. Nothing is read at import.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.errors import GLMError
from engine.glm.config import SERVED_QUANTIZATIONS
from engine.glm.size import parse_size
from storage.retention import FOREVER, parse_age

PREFIX = "GLM_"
DATABASE_FILE = "glm.db"
METAVARS = {
    "database": "URL",
    "server_name": "NAME",
    "spool": "FOLDER",
    "training_folder": "FOLDER",
    "general_rows": "FILE",
    "check_rows": "FILE",
    "evaluation_data": "FOLDER",
    "spool_limit": "SIZE",
    "quota": "SIZE",
    "admin_password_file": "FILE",
    "model": "FOLDER",
    "host": "ADDRESS",
    "root_path": "PATH",
    "weights_budget": "SIZE",
    "retention": "AGE",
    "retention_failed": "AGE",
    "retention_reviewed": "AGE",
}
Names = Annotated[tuple[str, ...], NoDecode]


class WrongSetting(Exception):
    """A setting that can't be used; `str(error)` is one sentence that names it."""


def data_folder() -> Path:
    """Where this system keeps a person's application data; not created here."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "glm-playground"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "glm-playground"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "glm-playground"


def default_database() -> str:
    return str(data_folder() / DATABASE_FILE)


class Settings(BaseSettings):
    """What `python -m app` can be told. Times in seconds; a rate or a limit of 0 means none."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", allow_inf_nan=False, validate_default=True)

    # Where it listens
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 opens it to the network")
    port: int = Field(7860, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    root_path: str = Field("", description="path in front of the whole site when a proxy serves it under one, as /glm")
    trusted_proxies: Names = Field(
        ("127.0.0.1", "::1"),
        description="proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, separated by commas; * means any",
    )
    allowed_origins: Names = Field(
        (), description="other sites whose pages may use this server, as https://example.org, separated by commas"
    )

    # The model and its processes
    model: str = Field("embedded", min_length=1, description="model folder, or `embedded` for the one that comes along")
    replicas: int = Field(1, ge=1, le=256, description="independent copies of the model")
    tensor_parallel: int = Field(1, ge=1, le=64, description="processes that share the weights of one copy")
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="numbers that the model computes with")
    quantize: Literal["none", *SERVED_QUANTIZATIONS] = Field(
        "none",
        description="fewer bits for the weights, while they are loaded; int4-g128: 4 bits, a scale for 128 columns; w8a8: "
        "activations of 8 bits, too",
    )
    offload: Literal["none", "host", "disk"] = Field(
        "none", description="where the layers wait that don't fit into the weights budget; read again for every token"
    )
    weights_budget: str = Field(
        "", description="memory for the weights of a model process, as 12GiB, with --offload host or disk"
    )
    device: Literal["auto", "cpu"] = Field(
        "auto", description="auto takes accelerators where there are any, one a process"
    )
    slots: int = Field(16, ge=1, le=4096, description="requests that one copy works on at the same time")
    gap_seconds: float = Field(
        0.1,
        ge=0,
        le=3600,
        description="how long running answers may wait for a token while a new prompt is read, or two steps of theirs; "
        "0: no limit",
    )
    batch_invariant: bool = Field(
        False, description="the same numbers for a request, to the bit, whatever runs beside it; slower"
    )
    kv_cache: Literal["auto", "full", "fp16"] = Field(
        "auto",
        description="how keys and values are kept: full, as the arithmetic is; fp16; auto: fp16 with quantised weights in fp32",
    )
    eager: bool = Field(
        False,
        description="on accelerators run each step operation by operation instead of replaying recorded ones; slower",
    )
    queue: int = Field(256, ge=1, description="requests that may wait for a slot; more are refused")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads of a model process; 0 chooses by the machine")

    # What is kept
    database: str = Field(
        default_factory=default_database,
        min_length=1,
        description="SQLite file or postgresql://user@host/name that keeps prompts and outputs",
    )
    retention: str = Field(
        "", description="how long prompts and outputs are kept, as 90d or 12h; if empty, until somebody deletes them"
    )
    retention_failed: str = Field(
        "", description="the same for runs that failed or were stopped, or `forever`; if empty, as --retention"
    )
    retention_reviewed: str = Field(
        "",
        description="the same for runs that were reviewed or corrected or stand in a dataset, or `forever`; if empty, as "
        "--retention",
    )
    allow_unlogged: bool = Field(
        False, description="let visitors choose that nothing but counts and timings is kept of what they send"
    )
    server_name: str = Field(
        "",
        max_length=100,
        description="name of this server among those that share a database, the same after a restart; if empty, host name "
        "and port",
    )
    when_unwritable: Literal["refuse", "answer"] = Field(
        "refuse",
        description="what happens to new requests while the database takes no writes; answer: they wait in the spool",
    )
    spool: str = Field(
        "", description="folder for runs that the database can't take now; if empty, beside the SQLite file"
    )
    spool_limit: str = Field("1GiB", description="how much may wait in the spool")
    quota: str = Field("", description="room that the database may take, as 200GiB; then it counts as full")
    admin_password_file: str = Field(
        "",
        description="file that the first password of the account `admin` is written to; if empty, beside the database",
    )
    grace_seconds: float = Field(120.0, ge=0, le=86400, description="how long a run goes on when nobody follows it")
    finished_runs: int = Field(
        2000, ge=0, description="finished runs that are kept in memory, to be resumed event by event"
    )

    # Fine-tuning
    training_folder: str = Field(
        "",
        description="folder for trainings and the model versions that come of them; if empty, training in the data folder",
    )
    training_threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of a training or a comparison; 0: all processors but one"
    )
    general_rows: str = Field(
        "",
        description="JSON lines that are replayed in every training, so that a model doesn't forget; if empty, those "
        "that come along",
    )
    check_rows: str = Field(
        "", description="JSON lines on which versions are compared beside corrections; if empty, those that come along"
    )
    evaluation_data: str = Field(
        "",
        description="folder with the rows of benchmarks, which can be measured under /admin then; made by `python -m engine "
        "evaluate --prepare`",
    )

    # What one visitor may do
    rate_limit: int = Field(600, ge=0, description="runs that one visitor may start in a minute")
    address_rate_limit: int = Field(
        3000, ge=0, description="runs that may be started from one network address in a minute"
    )
    concurrent_runs: int = Field(200, ge=0, description="runs of one visitor that may be under way at the same time")

    # What it tells
    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="what is logged to stderr")
    access_log: bool = Field(False, description="log a line for every request (address, path, status; never a text)")

    @field_validator("trusted_proxies", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or parts.fragment:
                raise ValueError(f"{origin} is not an origin: write it as https://example.org, without a path")
        return tuple(origin.lower() for origin in value)

    @field_validator("weights_budget", "spool_limit", "quota")
    @classmethod
    def _budget(cls, value: str) -> str:
        if value:
            try:
                parse_size(value)
            except GLMError as error:
                raise ValueError("write a size as 12GiB, 12GB or 800MiB") from error
        return value

    @field_validator("retention", "retention_failed", "retention_reviewed")
    @classmethod
    def _age(cls, value: str) -> str:
        if value and value != FOREVER:
            parse_age(value)
        return value

    @field_validator("root_path")
    @classmethod
    def _root(cls, value: str) -> str:
        value = value.rstrip("/")
        if value and (not value.startswith("/") or any(letter in value for letter in "?#; \\\"'<>")):
            raise ValueError("write it as /path, without a question mark, spaces or quotes")
        return value

    @property
    def is_public(self) -> bool:
        """Whether the address can be reached from other machines."""
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() != "localhost"

    @classmethod
    def create(cls, **given: Any) -> Settings:
        """From `given` values, then the environment, then the defaults. Raises WrongSetting."""
        try:
            return cls(**given)
        except ValidationError as error:
            raise WrongSetting(_sentence(error)) from error

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Settings:
        """From command-line flags. `--help` prints and exits 0; an unknown flag raises WrongSetting."""
        parser = _parser()
        given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
        return cls.create(**given)


def flag(name: str) -> str:
    """The flag of a setting: `grace_seconds` -> `--grace-seconds`."""
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise WrongSetting(f"{message[:1].upper()}{message[1:]}. See python -m app --help.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m app",
        description="Serve the GLM playground: the page, the websocket /ws and the HTTP routes under /api.",
        epilog=f"Every option can also be set in the environment: --port as {PREFIX}PORT. The flag wins.",
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = ",".join(default) if isinstance(default, tuple) else str(default)
        help_line = f"{field.description} (default: {shown or 'none'})".replace("%", "%%")
        if isinstance(default, bool):
            # BooleanOptionalAction gives --no-access-log too, which the environment may make necessary.
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=None, help=help_line)
        else:
            parser.add_argument(flag(name), metavar=_metavar(name, default), default=None, help=help_line)
    return parser


def _metavar(name: str, default: Any) -> str:
    choices = get_args(Settings.model_fields[name].annotation)
    if choices and isinstance(default, str):
        return "|".join(choices)
    if isinstance(default, int | float):
        return "N"
    return METAVARS.get(name, "LIST")


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        return f"There is no setting {name}."
    problem = first["msg"].removeprefix("Value error, ")
    # What was given is the person's own input on their own terminal; the database's address may hold a password.
    given = "" if name == "database" else f" (not {first['input']!r})"
    return f"{flag(name)} ({PREFIX}{name.upper()}): {problem[:1].lower()}{problem[1:]}{given}."

"""The first administrator: made at the first start, with a random password in a file that only its owner can read.

There is no default password. A file that is there already is never overwritten: the password in it is taken, so that whoever sets
a server up can prepare it. Nothing of this is printed or logged but where the file is.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from app.admin.access import hash_password, password_fits
from app.admin.account_bodies import PASSWORD_LEAST, PASSWORD_MOST
from app.service import Service
from app.settings import Settings, WrongSetting, data_folder
from storage import StorageError

NAME = "admin"
FILE = "admin-password.txt"
_OPTION = "--admin-password-file (GLM_ADMIN_PASSWORD_FILE)"


def password_file(settings: Settings, database_file: Path | None) -> Path:
    """Where the first password is: as the setting says, else beside the database's file, else in the data folder."""
    if settings.admin_password_file:
        return Path(settings.admin_password_file).expanduser()
    if database_file is not None:
        return database_file.with_name(f"{database_file.stem}-{FILE}")
    return data_folder() / FILE


async def first_administrator(service: Service) -> Path | None:
    """Make the administrator if there is no member at all; the file with the password, None if there was nothing to do.

    Raises WrongSetting for a file that can't be written or used, StorageError.
    """
    if await service.record.list_staff():
        return None
    path = password_file(service.settings, service.database.address.file).absolute()
    is_new = _write(path)
    password = _read(path)
    try:
        row = await service.record.create_staff(NAME, "admin", await hash_password(password))
    except StorageError as error:
        if error.kind != "conflict":
            raise
        # Another process with the same database was first, with a file of its own or with this very one.
        row = await service.record.find_staff(NAME)
        if row is None or not await password_fits(password, row.password):
            if is_new:
                path.unlink()
            return None
        return path
    await service.record.audit("server", "first administrator", "staff", row.id)
    return path


def _write(path: Path) -> bool:
    """Write a new password if there is no file yet; whether it did. Whoever finds the file finds it whole."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(f"{secrets.token_urlsafe(18)}\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            temporary.unlink()
    except FileExistsError:
        return False
    except OSError as error:
        raise WrongSetting(f"{_OPTION}: can't write {path}: {error.strerror or error}.") from error
    return True


def _read(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        password = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongSetting(f"{_OPTION}: can't read {path}.") from error
    if os.name == "posix" and stat.S_IMODE(mode) & 0o077:
        raise WrongSetting(f"{_OPTION}: others can read {path}; make it yours alone first (chmod 600).")
    if not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        raise WrongSetting(
            f"{_OPTION}: {path} must hold one password of {PASSWORD_LEAST} to {PASSWORD_MOST} characters."
        )
    return password

"""Who of the staff is asking: a browser by its session cookie, a program by `Authorization: Bearer KEY`.

    staff = await staff_of(request, service)                  # any member, or Problem login_needed
    staff = await staff_of(request, service, role="admin")    # or Problem role_needed

Cookie and key are random; only their hashes are stored. A session lasts SESSION_HOURS, a key until it is taken back. What a
browser asks to change must come from a page of this site (`check_origin`); its cookie goes to /admin and /api/admin of no other
site. Passwords are kept as salted scrypt hashes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from app.access import check_origin
from app.errors import Problem
from storage.staff_tables import Staff as StaffRow

if TYPE_CHECKING:
    from app.service import Service

COOKIE = "glm_staff"
SESSION_HOURS = 12
KEY_PREFIX = "glm_"
#: scrypt: 2**15 blocks of 8 x 128 bytes, 32 MiB and about 0.1 s a password (RFC 7914)
_N, _R, _P, _MEMORY = 2**15, 8, 1, 64 << 20


@dataclass(frozen=True, slots=True)
class Staff:
    """A member of staff who may do what is asked."""

    id: str
    name: str
    role: str  # "reviewer" or "admin", who may do all that a reviewer may


async def staff_of(connection: HTTPConnection, service: Service, *, role: str = "reviewer") -> Staff:
    """Who is asking. Raises Problem: `login_needed`, `role_needed`, `forbidden` for a page of another site, StorageError."""
    known: Staff | None = connection.scope.get("glm_staff")
    if known is None:
        row = await _row(connection, service)
        if row is None:
            raise Problem("login_needed")
        known = connection.scope["glm_staff"] = Staff(row.id, row.name, row.role)
    if role == "admin" and known.role != "admin":
        raise Problem("role_needed")
    return known


async def _row(connection: HTTPConnection, service: Service) -> StaffRow | None:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return await service.record.staff_of_key(key_hash(key.strip()), "key")
    cookie = connection.cookies.get(COOKIE)
    if not cookie:
        return None
    if connection.scope["type"] == "websocket" or connection.scope["method"] not in ("GET", "HEAD"):
        check_origin(connection, service.settings.allowed_origins)
    return await service.record.staff_of_key(key_hash(cookie), "session")


def key_hash(key: str) -> str:
    """What is stored of a random key. (A slow hash is for what people choose; nobody guesses 192 random bits.)"""
    return hashlib.sha256(f"glm-staff:{key}".encode()).hexdigest()


def new_key() -> str:
    """A random key for a program."""
    return KEY_PREFIX + secrets.token_urlsafe(24)


async def begin_session(service: Service, staff: str, connection: HTTPConnection) -> str:
    """Open a session for a member; returns the Set-Cookie header that a browser needs for it."""
    cookie = secrets.token_urlsafe(24)
    expires = service.record.clock() + timedelta(hours=SESSION_HOURS)
    await service.record.add_key(key_hash(cookie), staff, "session", expires=expires)
    return cookie_header(cookie, SESSION_HOURS * 3600, connection)


def cookie_header(cookie: str, seconds: int, connection: HTTPConnection) -> str:
    """The Set-Cookie header; 0 seconds take the cookie back."""
    path = connection.scope.get("root_path", "") or "/"
    secure = "; Secure" if connection.scope.get("scheme") in ("https", "wss") else ""
    return f"{COOKIE}={cookie}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


async def hash_password(password: str) -> str:
    """The salted hash that is stored."""
    salt = secrets.token_bytes(16)
    return f"scrypt${base64.b64encode(salt).decode()}${base64.b64encode(await _scrypt(password, salt)).decode()}"


async def password_fits(password: str, stored: str | None) -> bool:
    """Whether a password is the one of a stored hash; takes as long when there is none."""
    _, salt, expected = (stored or f"scrypt${base64.b64encode(bytes(16)).decode()}$").split("$")
    found = await _scrypt(password, base64.b64decode(salt))
    return hmac.compare_digest(found, base64.b64decode(expected)) and stored is not None


async def _scrypt(password: str, salt: bytes) -> bytes:
    return await asyncio.to_thread(
        hashlib.scrypt, password.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY, dklen=32
    )

"""One's own account over HTTP: login, logout, password, and the links by which members come. Others' accounts: people.py.

Passwords are tried slowly: so many a minute from one address and for one name, and only two at the same time. What changes
accounts must be done in a browser's session (`in_person`): a key that leaks can do what its owner may do, but makes no more keys,
members or passwords.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from app.access import RateLimit, address_of, check_origin
from app.admin.access import (
    COOKIE,
    Staff,
    begin_session,
    cookie_header,
    hash_password,
    key_hash,
    password_fits,
    staff_of,
)
from app.admin.account_bodies import AcceptBody, LoginBody, LogoutBody, PasswordBody, TokenBody, read
from app.errors import Problem
from app.service import Service
from storage.staff import staff_name
from storage.staff_tables import Staff as StaffRow

ADDRESS_TRIES = 30  # names, passwords and links that may be tried from one network address in a minute
NAME_TRIES = 10  # passwords for one name, from anywhere
HASHES = 2  # passwords that are hashed at the same time: each takes 32 MiB and a processor


class Tries:
    """How often passwords and links may be tried."""

    def __init__(self, address: int = ADDRESS_TRIES, name: int = NAME_TRIES) -> None:
        self._addresses = RateLimit(address)
        self._names = RateLimit(name)
        self.hashing = asyncio.Semaphore(HASHES)

    def admit(self, request: Request, name: str | None = None) -> None:
        """Count one try. Raises Problem `rate_limited` with the seconds to wait."""
        limits = [(self._addresses, address_of(request), "from one address")]
        if name is not None:
            limits.append((self._names, name, "for one name"))
        for limit, key, what in limits:
            if wait := limit.wait(key):
                message = f"Only {limit.per_minute} tries a minute {what}."
                raise Problem("rate_limited", message, limit=limit.per_minute, retry_after_s=round(wait, 2))


async def in_person(request: Request, service: Service, *, role: str = "reviewer") -> Staff:
    """As `staff_of`, but by a browser's session only. Raises Problem `role_needed` for a key."""
    staff = await staff_of(request, service, role=role)
    if "authorization" in request.headers:
        raise Problem("role_needed", "Accounts are changed in the browser, not with a key.")
    return staff


def routes(service: Service) -> APIRouter:
    """The routes of one's own account."""
    router = APIRouter()
    tries = Tries()

    @router.post("/api/admin/login")
    async def login(request: Request) -> Response:
        """{"name", "password"} -> {"id", "name", "role"} and the session's cookie. JSON from this site's pages only."""
        check_origin(request, service.settings.allowed_origins)
        body: LoginBody = await read(request, LoginBody)
        name = staff_name(body.name)
        tries.admit(request, name)
        row = await service.record.find_staff(name)
        usable = row is not None and row.disabled is None
        async with tries.hashing:
            fits = await password_fits(body.password, row.password if row is not None and usable else None)
        if row is None or not fits:
            # What was typed as a name may be a password: only a name that exists is written down.
            if row is not None:
                await service.record.audit(row.name, "login refused", "staff", row.id)
            raise Problem("login_needed", "The name or the password is wrong.", field="password")
        await service.record.audit(row.name, "login", "staff", row.id)
        return await entered(row, request)

    async def entered(row: StaffRow, request: Request) -> Response:
        header = await begin_session(service, row.id, request)
        return JSONResponse(_member(row), headers={"Set-Cookie": header})

    @router.get("/api/admin/me")
    async def me(request: Request) -> dict[str, Any]:
        """Who is asking."""
        return _member(await staff_of(request, service))

    @router.post("/api/admin/logout", status_code=204)
    async def logout(request: Request) -> Response:
        """End this session, with {"everywhere": true} all of the member's."""
        staff = await in_person(request, service)
        body: LogoutBody = await read(request, LogoutBody)
        if body.everywhere:
            await service.record.end_sessions(staff.id)
        else:
            await service.record.remove_key(key_hash(request.cookies[COOKIE]))
        await service.record.audit(staff.name, "logout", "staff", staff.id)
        return Response(status_code=204, headers={"Set-Cookie": cookie_header("", 0, request)})

    @router.post("/api/admin/password")
    async def password(request: Request) -> Response:
        """{"old", "new"}: change one's own password; every other session ends."""
        staff = await in_person(request, service)
        body: PasswordBody = await read(request, PasswordBody)
        tries.admit(request, staff.name)
        row = await service.record.find_staff(staff.name)
        assert row is not None
        async with tries.hashing:
            if not await password_fits(body.old, row.password):
                raise Problem("bad_request", "The old password is wrong.", field="old")
            hashed = await hash_password(body.new)
        row = await service.record.change_staff(staff.id, password=hashed)
        await service.record.audit(staff.name, "change password", "staff", staff.id)
        return await entered(row, request)

    @router.post("/api/admin/invitations/look")
    async def look(request: Request) -> dict[str, Any]:
        """{"token"} of a link -> {"role", "name"}: whose new password it is for, null for a new member. Or `not_found`."""
        check_origin(request, service.settings.allowed_origins)
        body: TokenBody = await read(request, TokenBody)
        tries.admit(request)
        invitation = await service.record.find_invitation(key_hash(body.token))
        name = await service.record.name_of(invitation.staff_id) if invitation.staff_id else None
        return {"role": invitation.role, "name": name}

    @router.post("/api/admin/invitations/accept")
    async def accept(request: Request) -> Response:
        """{"token", "name", "password"}: become a member, or take the new password; the answer is the login's."""
        check_origin(request, service.settings.allowed_origins)
        body: AcceptBody = await read(request, AcceptBody)
        tries.admit(request)
        token = key_hash(body.token)
        is_reset = (await service.record.find_invitation(token)).staff_id is not None
        async with tries.hashing:
            hashed = await hash_password(body.password)
        row = await service.record.accept_invitation(token, body.name, hashed)
        await service.record.audit(row.name, "reset password" if is_reset else "join", "staff", row.id)
        return await entered(row, request)

    return router


def _member(row: StaffRow | Staff) -> dict[str, str]:
    return {"id": row.id, "name": row.name, "role": row.role}

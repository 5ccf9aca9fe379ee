"""Everybody's accounts, for administrators: members, invitations, roles, keys for programs, and the audit."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from app.admin.access import key_hash, new_key, staff_of
from app.admin.account_bodies import ChangeBody, InvitationBody, KeyBody, MemberBody, read
from app.admin.accounts import in_person
from app.errors import Problem
from app.service import Service
from storage.staff_tables import Staff as StaffRow
from storage.staff_tables import StaffKey

INVITATION_DAYS = 7
RESET_HOURS = 24


def welcome_path(token: str) -> str:
    """Where an invitation's link leads, below the site's root. Behind the "#" it stands in no log of a server."""
    return f"admin#welcome?token={token}"


def routes(service: Service) -> APIRouter:
    """The routes under /api/admin/people, /keys, /invitations and /audit."""
    router = APIRouter()
    record = service.record

    @router.get("/api/admin/people")
    async def people(request: Request) -> dict[str, Any]:
        """Every member with their keys, and the invitations that are still open."""
        await staff_of(request, service, role="admin")
        members = await record.list_staff()
        keys = [(member, await record.list_keys(member.id)) for member in members]
        names = {member.id: member.name for member in members}
        invitations = [
            {
                "id": one.hash,
                "role": one.role,
                "for": names.get(one.staff_id) if one.staff_id else None,
                "by": names.get(one.created_by) if one.created_by else None,
                "expires": one.expires.isoformat(),
            }
            for one in await record.list_invitations()
        ]
        return {"people": [_member(member, some) for member, some in keys], "invitations": invitations}

    @router.post("/api/admin/people")
    async def add(request: Request) -> dict[str, Any]:
        """{"name", "role"}: a member without a password, for a program. StorageError `conflict` for a name that is taken."""
        staff = await in_person(request, service, role="admin")
        body: MemberBody = await read(request, MemberBody)
        row = await record.create_staff(body.name, body.role, None)
        await record.audit(staff.name, "add member", "staff", row.id, {"name": row.name, "role": row.role})
        return _member(row, [])

    @router.patch("/api/admin/people/{id}")
    async def change(id: str, request: Request) -> dict[str, Any]:
        """{"role"?, "disabled"?}. StorageError `not_found`; `conflict` where no administrator would be left."""
        staff = await in_person(request, service, role="admin")
        body: ChangeBody = await read(request, ChangeBody)
        if body.role is None and body.disabled is None:
            raise Problem("bad_request", "Give a role, or say whether the account is disabled.", field="role")
        row = await record.change_staff(id, role=body.role, disabled=body.disabled)
        told = {"name": row.name} | body.model_dump(exclude_none=True)
        await record.audit(staff.name, "change member", "staff", id, told)
        return _member(row, await record.list_keys(id))

    @router.post("/api/admin/people/{id}/reset")
    async def reset(id: str, request: Request) -> dict[str, Any]:
        """A link by which a member chooses a new password: {"path", "expires"}; shown once."""
        staff = await in_person(request, service, role="admin")
        row = await _member_row(id)
        if row.disabled is not None:
            raise Problem("conflict", "The account is disabled; enable it first.")
        told = await _link(staff.id, row.role, timedelta(hours=RESET_HOURS), row.id)
        await record.audit(staff.name, "offer new password", "staff", id, {"name": row.name})
        return told

    @router.post("/api/admin/invitations")
    async def invite(request: Request) -> dict[str, Any]:
        """{"role"}: a link by which a new member comes: {"path", "expires"}; shown once."""
        staff = await in_person(request, service, role="admin")
        body: InvitationBody = await read(request, InvitationBody)
        told = await _link(staff.id, body.role, timedelta(days=INVITATION_DAYS))
        await record.audit(staff.name, "invite", "staff", "", {"role": body.role})
        return told

    async def _link(by: str, role: str, life: timedelta, staff: str | None = None) -> dict[str, Any]:
        token = secrets.token_urlsafe(24)
        expires = record.clock() + life
        await record.invite(key_hash(token), role, expires, by=by, staff=staff)
        return {"path": welcome_path(token), "expires": expires.isoformat()}

    @router.delete("/api/admin/invitations/{id}", status_code=204)
    async def withdraw(id: str, request: Request) -> Response:
        """Take an invitation back."""
        staff = await in_person(request, service, role="admin")
        await record.remove_invitation(id)
        await record.audit(staff.name, "withdraw invitation", "staff")
        return Response(status_code=204)

    @router.post("/api/admin/people/{id}/keys")
    async def add_key(id: str, request: Request) -> dict[str, Any]:
        """{"label", "days"?}: a key for a member's program: {"key"}; shown once, only its hash is kept."""
        staff = await in_person(request, service, role="admin")
        body: KeyBody = await read(request, KeyBody)
        row = await _member_row(id)
        if row.disabled is not None:
            raise Problem("conflict", "The account is disabled; enable it first.")
        key = new_key()
        expires = record.clock() + timedelta(days=body.days) if body.days else None
        await record.add_key(key_hash(key), id, "key", label=body.label, expires=expires)
        await record.audit(staff.name, "make key", "staff", id, {"name": row.name, "label": body.label})
        return {"key": key, "label": body.label, "expires": expires.isoformat() if expires else None}

    @router.delete("/api/admin/people/{id}/keys/{key}", status_code=204)
    async def remove_key(id: str, key: str, request: Request) -> Response:
        """Take a key back; programs that use it are refused at once."""
        staff = await in_person(request, service, role="admin")
        row = await _member_row(id)
        found = next((one for one in await record.list_keys(id) if one.hash == key), None)
        if found is None:
            raise Problem("not_found", "This member has no such key.")
        await record.remove_key(key)
        await record.audit(staff.name, "take key back", "staff", id, {"name": row.name, "label": found.label})
        return Response(status_code=204)

    async def _member_row(id: str) -> StaffRow:
        found = next((member for member in await record.list_staff() if member.id == id), None)
        if found is None:
            raise Problem("not_found", "There is no such member.")
        return found

    @router.get("/api/admin/audit")
    async def audit(
        request: Request,
        actor: str | None = Query(None, max_length=100),
        action: str | None = Query(None, max_length=100),
        subject: str | None = Query(None, max_length=100),
        subject_id: str | None = Query(None, max_length=200),
        limit: int = Query(100, ge=1, le=500),
        after: str | None = Query(None, max_length=40),
    ) -> Response:
        """Who did what, the newest first; `next` goes into `after`."""
        await staff_of(request, service, role="admin")
        page = await record.list_audit(
            actor=actor, action=action, subject=subject, subject_id=subject_id, limit=limit, after=after
        )
        entries = [
            {
                "id": one.id,
                "moment": one.moment.isoformat(),
                "actor": one.actor,
                "action": one.action,
                "subject": one.subject,
                "subject_id": one.subject_id,
                "details": one.details,
            }
            for one in page.rows
        ]
        return JSONResponse({"entries": entries, "next": page.next})

    return router


def _member(row: StaffRow, keys: list[StaffKey]) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "role": row.role,
        "created": row.created.isoformat(),
        "disabled": row.disabled.isoformat() if row.disabled else None,
        "has_password": row.password is not None,
        "keys": [
            {
                "id": key.hash,
                "label": key.label,
                "created": key.created.isoformat(),
                "expires": key.expires.isoformat() if key.expires else None,
            }
            for key in keys
        ],
    }

"""Staff: who may look after a server, what lets them in, and the audit of what they did. Passwords come hashed, keys as
their hashes: this file never sees a secret."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations, Page
from storage.errors import StorageError
from storage.identifier import new_id
from storage.staff_tables import KEY_KINDS, ROLES, AuditEntry, Invitation, Staff, StaffKey, entry

NAME_CHARACTERS = 40


def staff_name(name: str) -> str:
    """The form in which a name is kept and compared."""
    return " ".join(name.split()).casefold()


class StaffRecord(Conversations):
    """The staff kept in `database`; `clock` gives moments with a time zone."""

    # People

    async def create_staff(self, name: str, role: str, password: str | None) -> Staff:
        """A new member; `password` is its salted hash. Raises `StorageError("conflict")` if the name is taken."""
        assert role in ROLES, role
        row = Staff(
            id=new_id(9),
            name=staff_name(name)[:NAME_CHARACTERS],
            role=role,
            password=password,
            created=self.clock(),
        )

        async def work(session: AsyncSession) -> Staff:
            session.add(row)
            await session.flush()
            return row

        return await self.database.write(work)

    async def list_staff(self) -> list[Staff]:
        """Everybody, disabled members too, in order of their names."""

        async def work(session: AsyncSession) -> list[Staff]:
            return list(await session.scalars(select(Staff).order_by(Staff.name)))

        return await self.database.read(work)

    async def name_of(self, id: str) -> str | None:
        """The name of a member, None if there is no such one."""

        async def work(session: AsyncSession) -> str | None:
            return await session.scalar(select(Staff.name).where(Staff.id == id))

        return await self.database.read(work)

    async def find_staff(self, name: str) -> Staff | None:
        """The member of this name, however it is written; a disabled one is found, too."""

        async def work(session: AsyncSession) -> Staff | None:
            return await session.scalar(select(Staff).where(Staff.name == staff_name(name)))

        return await self.database.read(work)

    async def change_staff(
        self, id: str, *, role: str | None = None, password: str | None = None, disabled: bool | None = None
    ) -> Staff:
        """Change what is given. A new password or a disabled account ends every session of the member; a disabled one's keys, too.
        Links to a new password end with the old one, and those that a member made who may not make them any more.

        Raises `StorageError`: `not_found`; `conflict` if no administrator would be left.
        """
        now = self.clock()

        async def work(session: AsyncSession) -> Staff:
            row = await session.scalar(select(Staff).where(Staff.id == id).with_for_update())
            if row is None:
                raise StorageError("not_found", "There is no such member.")
            if role is not None:
                row.role = role
            if password is not None:
                row.password = password
            if disabled is not None:
                row.disabled = now if disabled else None
            await session.flush()
            active = select(func.count()).where(Staff.role == "admin", Staff.disabled.is_(None))
            if not await session.scalar(active):
                raise StorageError("conflict", "The last administrator can't be disabled or become a reviewer.")
            if password is not None or disabled:
                ended = delete(StaffKey).where(StaffKey.staff_id == id)
                await session.execute(ended if disabled else ended.where(StaffKey.kind == "session"))
                await session.execute(delete(Invitation).where(Invitation.staff_id == id, Invitation.used.is_(None)))
            if disabled or role == "reviewer":
                await session.execute(delete(Invitation).where(Invitation.created_by == id, Invitation.used.is_(None)))
            return row

        return await self.database.write(work)

    # Keys

    async def add_key(
        self, hash: str, staff: str, kind: str, *, label: str = "", expires: datetime | None = None
    ) -> None:
        """What lets a member in from now on; `kind`: session or key. What has expired is removed by the way."""
        assert kind in KEY_KINDS, kind
        values = {
            "hash": hash,
            "staff_id": staff,
            "kind": kind,
            "label": label,
            "created": self.clock(),
            "expires": expires,
        }

        async def work(session: AsyncSession) -> None:
            await session.execute(delete(StaffKey).where(StaffKey.expires <= values["created"]))
            await session.execute(insert(StaffKey).values(values))

        await self.database.write(work)

    async def staff_of_key(self, hash: str, kind: str) -> Staff | None:
        """Whose key this is, unless it has expired or the member is disabled."""
        valid = or_(StaffKey.expires.is_(None), StaffKey.expires > self.clock())
        statement = select(Staff).join(StaffKey, StaffKey.staff_id == Staff.id)
        statement = statement.where(StaffKey.hash == hash, StaffKey.kind == kind, valid, Staff.disabled.is_(None))

        async def work(session: AsyncSession) -> Staff | None:
            return await session.scalar(statement)

        return await self.database.read(work)

    async def list_keys(self, staff: str, kind: str = "key") -> list[StaffKey]:
        """A member's keys, the newest first."""
        statement = select(StaffKey).where(StaffKey.staff_id == staff, StaffKey.kind == kind)

        async def work(session: AsyncSession) -> list[StaffKey]:
            return list(await session.scalars(statement.order_by(StaffKey.created.desc())))

        return await self.database.read(work)

    async def remove_key(self, hash: str) -> None:
        """End a session or a key; one that isn't there is no error."""

        async def work(session: AsyncSession) -> None:
            await session.execute(delete(StaffKey).where(StaffKey.hash == hash))

        await self.database.write(work)

    async def end_sessions(self, staff: str) -> None:
        """Log a member out of every browser."""

        async def work(session: AsyncSession) -> None:
            await session.execute(delete(StaffKey).where(StaffKey.staff_id == staff, StaffKey.kind == "session"))

        await self.database.write(work)

    # Invitations

    async def invite(
        self, hash: str, role: str, expires: datetime, *, by: str | None, staff: str | None = None
    ) -> None:
        """A link that works once until `expires`: for a new member in `role`, or for a new password of `staff`."""
        assert role in ROLES, role
        row = Invitation(
            hash=hash, role=role, staff_id=staff, created_by=by, created=self.clock(), expires=expires, used=None
        )

        async def work(session: AsyncSession) -> None:
            session.add(row)

        await self.database.write(work)

    async def find_invitation(self, hash: str) -> Invitation:
        """One that can still be used. Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> Invitation:
            return await _valid_invitation(session, hash, self.clock())

        return await self.database.read(work)

    async def list_invitations(self) -> list[Invitation]:
        """Those that can still be used, the newest first."""
        statement = select(Invitation).where(Invitation.used.is_(None), Invitation.expires > self.clock())

        async def work(session: AsyncSession) -> list[Invitation]:
            return list(await session.scalars(statement.order_by(Invitation.created.desc())))

        return await self.database.read(work)

    async def remove_invitation(self, hash: str) -> None:
        """Take one back that wasn't used; one that isn't there is no error."""

        async def work(session: AsyncSession) -> None:
            await session.execute(delete(Invitation).where(Invitation.hash == hash, Invitation.used.is_(None)))

        await self.database.write(work)

    async def accept_invitation(self, hash: str, name: str, password: str) -> Staff:
        """Use an invitation: the new member, or the old one with the new password (`name` is not looked at then). Exactly one of
        two who use it at once succeeds. Raises `StorageError`: `not_found`, `conflict` for a name that is taken."""
        now = self.clock()

        async def work(session: AsyncSession) -> Staff:
            invitation = await _valid_invitation(session, hash, now)
            taken = update(Invitation).where(Invitation.hash == hash, Invitation.used.is_(None)).values(used=now)
            if (await session.execute(taken)).rowcount == 0:
                raise _no_invitation()
            if invitation.staff_id is not None:
                row = await session.get_one(Staff, invitation.staff_id)
                if row.disabled is not None:
                    raise _no_invitation()
                row.password = password
                others = delete(Invitation).where(Invitation.staff_id == row.id, Invitation.used.is_(None))
                await session.execute(others)
                await session.execute(delete(StaffKey).where(StaffKey.staff_id == row.id, StaffKey.kind == "session"))
            else:
                row = Staff(
                    id=new_id(9),
                    name=staff_name(name)[:NAME_CHARACTERS],
                    role=invitation.role,
                    password=password,
                    created=now,
                )
                session.add(row)
            await session.flush()
            return row

        return await self.database.write(work)

    # Audit

    async def audit(self, actor: str, action: str, subject: str, subject_id: str = "", details: Any = None) -> None:
        """Note who did what to what; `details` must not hold a visitor's text."""
        values = entry(self.clock(), actor, action, subject, subject_id, details)

        async def work(session: AsyncSession) -> None:
            await session.execute(insert(AuditEntry).values(values))

        await self.database.write(work)

    async def list_audit(
        self,
        *,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
        subject_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> Page[AuditEntry]:
        """The newest first; `after` is the `next` of the page before. Raises `StorageError("not_found")` for a wrong one."""
        statement = select(AuditEntry).order_by(AuditEntry.id.desc()).limit(limit + 1)
        wanted = {"actor": actor, "action": action, "subject": subject, "subject_id": subject_id}
        for name, value in wanted.items():
            if value is not None:
                statement = statement.where(getattr(AuditEntry, name) == value)
        if after is not None:
            if not after.isdecimal():
                raise StorageError("not_found", "There is no such page of the list.")
            statement = statement.where(AuditEntry.id < int(after))

        async def work(session: AsyncSession) -> Page[AuditEntry]:
            rows = list(await session.scalars(statement))
            return Page(rows[:limit], str(rows[limit - 1].id) if len(rows) > limit else None)

        return await self.database.read(work)


async def _valid_invitation(session: AsyncSession, hash: str, now: datetime) -> Invitation:
    found = await session.get(Invitation, hash)
    if found is None or found.used is not None or found.expires <= now:
        raise _no_invitation()
    return found


def _no_invitation() -> StorageError:
    return StorageError("not_found", "This link was used, has expired, or never was.")

"""The tables of those who look after a server: staff with their keys and invitations, and the audit of what was done."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from storage.models import Base, one_of

ROLES = ("reviewer", "admin")
KEY_KINDS = ("session", "key")


class Staff(Base):
    """A reviewer or an administrator. `name` is unique in lower case; `password` a salted hash, None until one was chosen."""

    __tablename__ = "staff"
    __table_args__ = (CheckConstraint(one_of("role", ROLES), name="role"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    role: Mapped[str]
    password: Mapped[str | None]
    created: Mapped[datetime]
    disabled: Mapped[datetime | None]


class StaffKey(Base):
    """What lets a member of staff in: the hash of a browser's session cookie, or of a key for programs (named by `label`)."""

    __tablename__ = "staff_key"
    __table_args__ = (CheckConstraint(one_of("kind", KEY_KINDS), name="kind"), Index(None, "staff_id"))

    hash: Mapped[str] = mapped_column(primary_key=True)
    staff_id: Mapped[str] = mapped_column(ForeignKey("staff.id", ondelete="CASCADE"))
    kind: Mapped[str]
    label: Mapped[str]
    created: Mapped[datetime]
    expires: Mapped[datetime | None]


class Invitation(Base):
    """A link that works once: to become staff in `role`, or, with `staff_id`, to choose a new password. Its hash is kept."""

    __tablename__ = "invitation"
    __table_args__ = (CheckConstraint(one_of("role", ROLES), name="role"),)

    hash: Mapped[str] = mapped_column(primary_key=True)
    role: Mapped[str]
    staff_id: Mapped[str | None] = mapped_column(ForeignKey("staff.id", ondelete="CASCADE"))
    created_by: Mapped[str | None] = mapped_column(ForeignKey("staff.id"))
    created: Mapped[datetime]
    expires: Mapped[datetime]
    used: Mapped[datetime | None]


class AuditEntry(Base):
    """Who did what to what, without any text of a visitor. `actor`: a member's name, or `command line`, `server`."""

    __tablename__ = "audit_entry"
    __table_args__ = (Index(None, "moment", "id"), Index(None, "subject", "subject_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    moment: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    subject_id: Mapped[str]
    details: Mapped[Any | None]


def entry(
    moment: datetime, actor: str, action: str, subject: str, subject_id: str = "", details: Any = None
) -> dict[str, Any]:
    """The values of an audit entry, for an INSERT in the transaction that does what it tells."""
    return {
        "moment": moment,
        "actor": actor,
        "action": action,
        "subject": subject,
        "subject_id": subject_id,
        "details": details,
    }

"""What the routes of accounts and people take, field by field, with its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter
from starlette.requests import Request

from app.bodies import json_body
from app.schemas import Body, validated
from storage.staff import NAME_CHARACTERS

PASSWORD_LEAST = 10
PASSWORD_MOST = 200
GIVEN_MOST = 1000  # characters of what is compared with a stored name or password: it may be anything
LABEL_CHARACTERS = 80
BODY_BYTES = 16 * 1024

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=NAME_CHARACTERS)]
NewPassword = Annotated[str, StringConstraints(min_length=PASSWORD_LEAST, max_length=PASSWORD_MOST)]
Given = Annotated[str, StringConstraints(max_length=GIVEN_MOST)]
Token = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Role = Literal["reviewer", "admin"]


class LoginBody(Body):
    name: Given
    password: Given


class LogoutBody(Body):
    """`everywhere`: end the sessions of all one's browsers."""

    everywhere: bool = False


class PasswordBody(Body):
    old: Given
    new: NewPassword


class InvitationBody(Body):
    role: Role


class TokenBody(Body):
    token: Token


class AcceptBody(Body):
    """`name` isn't looked at where the link is for a member's new password."""

    token: Token
    name: Name
    password: NewPassword


class MemberBody(Body):
    """A member without a password, for a program, which comes with a key."""

    name: Name
    role: Role


class ChangeBody(Body):
    role: Role | None = None
    disabled: bool | None = None


class KeyBody(Body):
    """A key for a program; without `days` it lasts until it is taken back."""

    label: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LABEL_CHARACTERS)]
    days: int | None = Field(None, ge=1, le=3660)


_ADAPTERS: dict[type[Body], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind)
    for kind in (
        LoginBody,
        LogoutBody,
        PasswordBody,
        InvitationBody,
        TokenBody,
        AcceptBody,
        MemberBody,
        ChangeBody,
        KeyBody,
    )
}


async def read(request: Request, kind: type[Body]) -> Any:
    """The request's body as one of the classes above. Raises Problem `bad_request` with the field, or `too_large`."""
    return validated(_ADAPTERS[kind], await json_body(request, BODY_BYTES))

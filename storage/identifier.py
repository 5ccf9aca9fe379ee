"""Random names of rows, pages and visitors, safe in addresses, file names and as arguments of a command.

`secrets.token_urlsafe` begins one in 64 with "-", which a command line takes for an option.
"""

from __future__ import annotations

import secrets


def new_id(size: int) -> str:
    """`size` random bytes in base64url: about 4/3 as many characters, the first of them not "-"."""
    while (name := secrets.token_urlsafe(size)).startswith("-"):
        pass
    return name

"""Which versions of the tinker SDK this server can serve."""

import re

from fastapi import Request
from tinker import __version__ as NEWEST_TRIED

from tinsmith.errors import TinsmithError

# The first that reads protobuf results; those before it want JSON, and the first know no sessions.
OLDEST = "0.19.0"
USER_AGENT = re.compile(r"AsyncTinker/Python ([0-9]{1,9})\.([0-9]{1,9})\.([0-9]{1,9})")


async def refuse_old_sdk(request: Request) -> None:
    """Refuse the requests of an SDK that could not read the answers; other clients may pass."""
    found = USER_AGENT.match(request.headers.get("user-agent", ""))
    if found and tuple(map(int, found.groups())) < _numbers(OLDEST):
        version = ".".join(found.groups())
        raise TinsmithError(
            f"tinker {version} cannot be served: this server serves tinker {OLDEST} and later, and "
            f"was tried up to {NEWEST_TRIED}; pip install 'tinker=={NEWEST_TRIED}'"
        )


def note_on(version: str) -> str | None:
    """What a client with an SDK that is newer than this server should know."""
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9}){2}", version) and _numbers(version) > _numbers(
        NEWEST_TRIED
    ):
        return (
            f"this Tinsmith server was tried with tinker {OLDEST} to {NEWEST_TRIED}, and this is "
            f"{version}: what it does not know it refuses"
        )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))

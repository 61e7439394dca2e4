"""What came of calling a method, and how that is told from the error that it raised."""

import re
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["works", "refused", "broken", "fails", "no probe"]
# Refusals that the SDK itself makes, without asking the server.
SDK_REFUSALS = ("whoami requires JWT auth",)
# Methods that no program can call in some version of the SDK, whatever the server does.
SDK_FAULTS = ("AsyncTinker client called from incorrect event loop",)
UNKNOWN_ROUTE = "is not offered by this Tinsmith server"
SERVER_MESSAGE = (
    re.compile(r"Error code: 4\d\d - \{'error': [\"'](?P<message>.*?)[\"'], 'detail'"),
    re.compile(r"Could not validate the API key (?P<message>.*?) \(HTTP 4\d\d from"),
    re.compile(r"Request failed: (?P<message>.*?) for self\.request_id="),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`detail` is the refusal or the error; empty where the method works."""

    verdict: Verdict
    detail: str = ""


def outcome_of(error: str) -> Outcome:
    """Tell a refusal, which says why, from a failure."""
    text = " ".join(_without_names_of_this_run(error).split())
    for pattern in SERVER_MESSAGE:
        if (match := pattern.search(text)) and UNKNOWN_ROUTE not in text:
            return Outcome("refused", match["message"].replace("\\'", "'"))
    if any(refusal in text for refusal in SDK_REFUSALS):
        return Outcome("refused", f"By the SDK itself: {text}")
    if any(fault in text for fault in SDK_FAULTS):
        return Outcome("broken", f"In the SDK itself: {text}")
    return Outcome("fails", text)


def _without_names_of_this_run(text: str) -> str:
    text = re.sub(r"[0-9a-f]{32}", "<id>", text)
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:<port>", text)

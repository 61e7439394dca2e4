"""Training runs of a local server or of the hosted service: what there is, and how to stop it.

    python -m scripts.tinker_runs --list
    python -m scripts.tinker_runs --run RUN
    python -m scripts.tinker_runs --cancel RUN

TINKER_BASE_URL and TINKER_API_KEY say where, as for every Tinker program.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import tinker

from tinsmith.errors import TinsmithError
from tinsmith.remote import check_hosted, past_proxies, rest_client

ACTIVE_S = 30 * 60
RECENT_S = 24 * 3600
TIMEOUT_S = 20.0
PAGE = 100
NO_CANCEL = (
    "the service at {url} has no cancel: only a Tinsmith server does. Stop the program that trains "
    "(Ctrl-C, kill, or scancel for a job)"
)
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = _parse(argv)
    os.environ.update(past_proxies())
    try:
        key = os.environ.get("TINKER_API_KEY")
        if not key:
            raise TinsmithError("TINKER_API_KEY is not set; export the key of the service")
        answer = _act(args, os.environ.get("TINKER_BASE_URL") or None, key)
    except (TinsmithError, tinker.APIError, httpx.HTTPError, ValueError) as error:
        print(f"tinker_runs: {_reason(error)}", file=sys.stderr)
        return 2
    print(json.dumps(answer, indent=2) if args.json else _as_text(answer))
    return 0


def _reason(error: Exception) -> str:
    """What the service says in its answer, where it says it in words."""
    body = error.body if isinstance(error, tinker.APIStatusError) else None
    said = cast("dict[str, Any]", body).get("error") if isinstance(body, dict) else None
    return said if isinstance(said, str) else str(error)


def _act(args: argparse.Namespace, url: str | None, key: str) -> Row | list[Row]:
    """What was asked for of the service at `url`, None for the SDK's own."""
    is_tinsmith = url is not None and _is_tinsmith(url)
    if args.cancel or args.cancel_all:
        if url is None or not is_tinsmith:
            raise TinsmithError(NO_CANCEL.format(url=url or "the SDK's own address"))
        with httpx.Client(base_url=url, headers={"X-API-Key": key}) as http:
            return _cancel(args, http)
    if url is None:
        check_hosted(())  # says so where it does not answer, which the SDK tries for longer
    rest = rest_client()
    if args.list:
        return [_run_row(run) for run in _every_run(rest)]
    if args.list_sessions:
        ids = _pages(lambda limit, offset: rest.list_sessions(limit, offset).result().sessions)
        return [_session_row(rest, session_id) for session_id in ids]
    if args.run:
        run = rest.get_training_run(args.run).result()
        found = rest.list_checkpoints(args.run).result().checkpoints
        row = _run_row(run) | {"metadata": run.user_metadata}
        return row | {"checkpoints": [one.tinker_path for one in found]}
    if args.checkpoints is not None:
        return [_checkpoint_row(one) for one in _checkpoints(rest, args.checkpoints)]
    return [_delete(args, rest)]


def _delete(args: argparse.Namespace, rest: tinker.RestClient) -> Row:
    path = args.delete_checkpoint
    run = tinker.ParsedCheckpointTinkerPath.from_tinker_path(path).training_run_id
    if path not in (one.tinker_path for one in rest.list_checkpoints(run).result().checkpoints):
        raise TinsmithError(f"there is no checkpoint {path}; --checkpoints {run} lists those of it")
    _confirm(args, f"delete {path}, from which there is no way back")
    rest.delete_checkpoint_from_tinker_path(path).result()
    return {"deleted": path}


def _every_run(rest: tinker.RestClient) -> list[Any]:
    return _pages(
        lambda limit, offset: rest.list_training_runs(limit, offset).result().training_runs
    )


def _checkpoints(rest: tinker.RestClient, run: str) -> list[Any]:
    if run:
        return rest.list_checkpoints(run).result().checkpoints
    return _pages(lambda limit, at: rest.list_user_checkpoints(limit, at).result().checkpoints)


def _pages(fetch: Callable[[int, int], Sequence[Any]]) -> list[Any]:
    """All that there is: to the first empty page, since a service may give fewer than asked for."""
    found: list[Any] = []
    while page := fetch(PAGE, len(found)):
        found += page
    return found


def _run_row(run: Any) -> Row:
    last = (run.last_checkpoint, run.last_sampler_checkpoint)
    return {
        "run": run.training_run_id,
        "base_model": run.base_model,
        "rank": run.lora_rank,
        "last_request": _time(run.last_request_time),
        "state": activity(run.last_request_time, datetime.now(UTC)),
        "corrupted": run.corrupted,
        "last_checkpoints": [one.tinker_path for one in last if one is not None],
    }


def activity(last_request: datetime, now: datetime) -> str:
    """Whether a run is at work: active within 30 minutes, recent within a day, else idle."""
    silent_s = (now - last_request).total_seconds()
    return "active" if silent_s < ACTIVE_S else "recent" if silent_s < RECENT_S else "idle"


def _session_row(rest: tinker.RestClient, session_id: str) -> Row:
    session = rest.get_session(session_id).result()
    num_samplers = len(session.sampler_ids)
    return {"session": session_id, "runs": session.training_run_ids, "num_samplers": num_samplers}


def _checkpoint_row(checkpoint: Any) -> Row:
    return {
        "path": checkpoint.tinker_path,
        "type": checkpoint.checkpoint_type,
        "time": _time(checkpoint.time),
        "size_bytes": checkpoint.size_bytes,
        "expires": _time(checkpoint.expires_at),
    }


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="seconds")


def _cancel(args: argparse.Namespace, http: httpx.Client) -> list[Row]:
    if args.cancel:  # nobody is asked about one that is not there
        rest_client().get_training_run(args.cancel).result()
    runs = [args.cancel] if args.cancel else _active(http, rest_client())
    if not runs:
        return []
    _confirm(args, f"stop {', '.join(runs)}, and every other run of their sessions")
    return _stop_all(http, runs)


def _active(http: httpx.Client, rest: tinker.RestClient) -> list[str]:
    """The runs whose program is alive: the server hears its heartbeats."""
    asked: Row = {"statuses": [{"type": "active"}], "limit": PAGE}
    sessions: set[str] = set()
    while True:
        page = http.post("/api/v1/sessions/search", json=asked).raise_for_status().json()
        sessions |= {session["session_id"] for session in page["sessions"]}
        if page["next_cursor"] is None:
            break
        asked["cursor"] = page["next_cursor"]
    every = [run.training_run_id for run in _every_run(rest)]
    return [run for run in every if run.split(":")[0] in sessions]


def _is_tinsmith(url: str) -> bool:
    """Whether a Tinsmith server answers there. Where nobody does, the SDK would try for minutes."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/readyz", timeout=TIMEOUT_S)
        return answer.status_code in (200, 503) and bool({"models", "error"} & answer.json().keys())
    except httpx.TransportError as error:
        raise TinsmithError(
            f"no service answers at TINKER_BASE_URL {url} ({error}): start it (tinsmith serve), or"
            " correct the address"
        ) from error
    except (ValueError, AttributeError):  # no JSON, or no object
        return False


def _stop_all(http: httpx.Client, runs: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    stopped: set[str] = set()  # with an earlier one of their session
    for run in runs:
        if run in stopped:
            continue
        answer = http.post(f"/api/v1/training_runs/{run}/cancel")
        if answer.status_code == httpx.codes.GONE:
            raise TinsmithError(f"the session of {run} has ended: there is nothing to stop")
        if answer.status_code != httpx.codes.OK:
            raise TinsmithError(f"{run} was not stopped: {answer.json()['error']}")
        found = answer.json()["training_run_ids"]
        stopped |= set(found)
        rows.append({"cancelled": run, "with": found})
    return rows


def _confirm(args: argparse.Namespace, what: str) -> None:
    if args.yes:
        return
    if not sys.stdin.isatty():
        raise TinsmithError(f"this would {what}; give --yes where nobody can be asked")
    if input(f"This will {what}. Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        raise TinsmithError("nothing was done")


def _as_text(answer: Row | list[Row]) -> str:
    if isinstance(answer, dict):
        return "\n".join(f"{name}: {_cell(value)}" for name, value in answer.items())
    if not answer:
        return "none"
    names = list(answer[0])
    rows = [names, *([_cell(row[name]) for name in names] for row in answer)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="tinker_runs", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    add = what.add_argument
    add("--list", action="store_true", help="runs, the one used last first")
    add("--list-sessions", action="store_true", help="sessions, with their runs")
    add("--run", metavar="RUN", help="one run, with its checkpoints")
    add("--checkpoints", nargs="?", const="", metavar="RUN", help="checkpoints, of a run or of all")
    add("--delete-checkpoint", metavar="PATH", help="remove the checkpoint at a tinker:// path")
    add("--cancel", metavar="RUN", help="stop a run and its session (a Tinsmith server only)")
    add("--cancel-all", action="store_true", help="stop every run whose program is alive")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--yes", action="store_true", help="ask nothing")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

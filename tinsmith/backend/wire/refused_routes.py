"""What the Tinker API offers and a server on one's own machine does not: each says why, and what
to do instead."""

from fastapi import APIRouter

from tinsmith.errors import TinsmithError

_ACCOUNTS = "a Tinsmith server has no accounts and no organisation"
_BILLING = f"{_ACCOUNTS}: nothing is billed"
_KEYS = (
    "a Tinsmith server has one API key, which it is started with: set TINKER_API_KEY to the key "
    "that `tinsmith serve` printed, and start it with another --api-key to change it"
)
# (method, path under /api/v1) -> why not, and what instead.
REFUSED: dict[tuple[str, str], str] = {
    ("GET", "/audit"): f"{_ACCOUNTS}, hence no audit log; the log of the server is on its standard "
    "error",
    ("GET", "/billing/usage/events"): _BILLING,
    ("GET", "/billing/usage/checkpoints/current"): f"{_BILLING}; list_user_checkpoints gives the "
    "size of each checkpoint",
    ("POST", "/auth/token"): _KEYS,
    ("GET", "/auth/apikey/me"): _KEYS,
    ("DELETE", "/auth/apikey/me"): _KEYS,
    ("PUT", "/sessions/{session_id}/project"): "a Tinsmith server has no projects to move a "
    "session into; a project_id given to ServiceClient is kept with the session, and sessions and "
    "runs can be searched by it",
    ("GET", "/sessions/{session_id}/trace_export"): "a Tinsmith server keeps no timeline of its "
    "requests; measure in the client, or watch the server's metrics",
    ("GET", "/training_runs/{model_id}/checkpoints/{kind}/{name}/archive"): "checkpoints are not "
    "packed into archives; save_weights_external makes a PEFT adapter, and "
    "get_external_weights_urls gives its files (the tinker checkpoint download of later SDKs does "
    "both)",
    ("POST", "/unload_model"): "a model is freed when its session ends: close the ServiceClient",
    ("POST", "/create_custom_loss"): "losses that clients define are not run on this server, since "
    "they are code; forward_backward_custom runs them in the client",
    ("POST", "/retrieve_futures"): "this server answers POST /api/v1/retrieve_future, one request "
    "at a time, as its client config says (sample_use_retrieve_futures is false)",
    ("POST", "/join_sampling_session"): "sampling clients of several processes need not be told "
    "apart here, as the client config says (sample_join_sampling_session is false)",
}


def add_refused_routes(api: APIRouter) -> None:
    for (method, path), reason in REFUSED.items():
        _add(api, method, path, reason)


def _add(api: APIRouter, method: str, path: str, reason: str) -> None:
    # A 400: the client repeats a request that is answered by 409 or by 5xx.
    async def refuse() -> None:
        raise TinsmithError(f"{method} /api/v1{path} is not offered: {reason}")

    api.add_api_route(path, refuse, methods=[method])

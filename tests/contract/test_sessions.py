"""Sessions are found, listed and ended by the SDK."""

from typing import Any

import httpx
import pytest
import tinker
from tinker import types

from tests.clients import random_tokens, trained_client
from tinsmith.serving import Endpoint


@pytest.mark.filterwarnings("ignore")
def test_a_session_tells_what_it_holds_and_is_found_again(
    endpoint: Endpoint, rest: tinker.RestClient
):
    def search(**filters: Any) -> list[types.SessionSummary]:
        return rest.search_sessions(types.SessionSearchRequest(**filters)).result().sessions

    with tinker.ServiceClient(
        user_metadata={"sweep": "17"}, display_name="Nightly Sums run", project_id="sums",
        base_url=endpoint.base_url, api_key=endpoint.api_key,
    ) as service:  # fmt: skip
        trainer = trained_client(service, "llama", steps=1)
        session_id = trainer.model_id.split(":")[0]
        trainer.save_state("a").result()
        sampler = service.create_sampling_client(base_model="llama").result()
        snapshot = trainer.save_weights_and_get_sampling_client().result()
        session = rest.get_session(session_id, access_scope="accessible").result()
        assert session.training_run_ids == [trainer.model_id]
        assert len(session.sampler_ids) == 2
        assert {s._sampling_session_id for s in (sampler, snapshot)} == set(session.sampler_ids)
        assert session.user_metadata == {"sweep": "17"}
        assert session.display_name == "Nightly Sums run"
        [summary] = search(session_id=session_id)
        assert (summary.owner, summary.project_id) == ("local", "sums")
        assert summary.checkpoints_count == 1
        assert (summary.checkpoint_storage_bytes or 0) > 1000
        assert summary.status == types.session_status.SessionActive()
    wanted = [
        {"display_name": "sums nightly"}, {"user_metadata": {"sweep": "17"}},
        {"project_ids": ["sums", "other"]}, {"session_id": session_id, "display_name": "nobody's"},
        {"session_id": session_id, "owner": types.AccessibleSearchOwner()},
        {"session_id": session_id, "statuses": [types.ClientFinishedSessionStatusQuery()]},
    ]  # fmt: skip
    for filters in wanted:
        assert [s.session_id for s in search(**filters)] == [session_id], filters
    others = [
        {"display_name": "nightly words"}, {"user_metadata": {"sweep": "18"}},
        {"project_ids": ["other"]}, {"display_name": "nightly", "project_ids": ["other"]},
        {"session_id": session_id, "owner": types.UserSearchOwner(owner_urns=["somebody"])},
        {"session_id": session_id, "statuses": [types.ActiveSessionStatusQuery()]},
    ]  # fmt: skip
    for filters in others:
        assert search(**filters) == [], filters
    status = search(session_id=session_id)[0].status
    assert status is not None
    assert (status.type, status.reason.type) == ("client_finished", "success")  # pyright: ignore


@pytest.mark.filterwarnings("ignore")
def test_pages_of_sessions_cover_all_sessions_once(
    service: tinker.ServiceClient, endpoint: Endpoint, rest: tinker.RestClient
):
    for _ in range(5):
        headers = {"X-API-Key": endpoint.api_key}
        url = f"{endpoint.base_url}/api/v1/create_session"
        httpx.post(url, json={"sdk_version": "0.38.0"}, headers=headers).raise_for_status()
    every = rest.list_sessions(limit=1000).result().sessions
    assert len(every) >= 5
    pages = [rest.list_sessions(limit=2, offset=i).result().sessions for i in range(0, 5, 2)]
    assert [one for page in pages for one in page] == every[:6]
    request, searched = types.SessionSearchRequest(limit=2), []
    while request is not None and len(searched) < len(every):
        page = rest.search_sessions(request).result()
        searched += [s.session_id for s in page.sessions]
        cursor = page.next_cursor
        request = cursor and request.model_copy(update={"cursor": cursor})
    assert searched == every
    assert request is None


def test_a_session_that_has_ended_takes_no_more_requests(endpoint: Endpoint):
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        trainer = trained_client(service, "llama", steps=1)
        path = trainer.save_state("last").result().path
    session, headers = trainer.model_id.split(":")[0], {"X-API-Key": endpoint.api_key}
    step = {"model_id": trainer.model_id, "seq_id": 9, "adam_params": {}}
    new = {"session_id": session, "model_seq_id": 5, "base_model": "llama"}
    for route, body, status, message in (
        ("optim_step", step, 404, path), ("create_model", new, 410, "has ended"),
        ("session_heartbeat", {"session_id": session}, 410, "has ended"),
    ):  # fmt: skip
        url = f"{endpoint.base_url}/api/v1/{route}"
        answer = httpx.post(url, json=body, headers=headers, timeout=60)
        assert answer.status_code == status
        assert message in answer.json()["error"]


def test_metadata_that_is_no_text_does_not_break_the_lists(
    rest: tinker.RestClient, endpoint: Endpoint
):
    url, headers = f"{endpoint.base_url}/api/v1", {"X-API-Key": endpoint.api_key}
    body = {"sdk_version": "0.38.0", "user_metadata": {"depth": 3, "name": "x"}}
    session = httpx.post(f"{url}/create_session", json=body, headers=headers).json()["session_id"]
    found = rest.get_session(session).result()
    assert found.user_metadata == {"depth": "3", "name": "x"}


def test_sampling_in_a_session_that_somebody_ended_fails_at_once(endpoint: Endpoint):
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        sampler = service.create_sampling_client(base_model="llama").result()
        session_id = sampler._sampling_session_id.split(":")[0]
        url, headers = f"{endpoint.base_url}/api/v1", {"X-API-Key": endpoint.api_key}
        body = {"reason": {"type": "success"}}
        httpx.post(f"{url}/sessions/{session_id}/finish", json=body, headers=headers, timeout=60)
        prompt = types.ModelInput.from_ints(random_tokens(0, 5))
        asked = sampler.sample(prompt, 1, types.SamplingParams(max_tokens=1))
        with pytest.raises(tinker.APIStatusError, match="has ended; make a new") as told:
            asked.result(timeout=120)
        assert told.value.status_code == 410

"""What OpenAI's clients leave behind on a server, and what they are told when it is in trouble."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tinker

from tests.clients import train, trained_client
from tests.in_process import KEY, Served, serving
from tests.openai_client import IDS, chat, token_ids
from tinsmith.backend import completions, queue
from tinsmith.backend.futures import Promise, Result
from tinsmith.serving import Endpoint


def num_sampled(endpoint: Endpoint) -> float:
    """Tokens that the server has sampled, once it is at rest."""
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    while True:
        text = httpx.get(f"{endpoint.base_url}/metrics", headers=headers).text
        lines = (line.split(" ") for line in text.splitlines() if line[0] != "#")
        values = {name: float(value) for name, value in lines}
        if values["tinsmith_completions_running"] + values["tinsmith_operations_waiting"] == 0:
            return values["tinsmith_sampled_tokens_total"]
        time.sleep(0.02)


def test_a_client_that_goes_away_ends_its_work(openai_client: openai.OpenAI, endpoint: Endpoint):
    drawing: Any = {"seed": 2, "n": 16, "max_tokens": 400}
    counts = [num_sampled(endpoint)]
    chat(openai_client, "qwen3", **drawing)
    counts.append(num_sampled(endpoint))
    with chat(openai_client, "qwen3", stream=True, **drawing) as stream:  # pyright: ignore
        assert next(iter(stream)).choices
    counts.append(num_sampled(endpoint))
    with pytest.raises(openai.APITimeoutError):
        chat(openai_client.with_options(max_retries=0), "qwen3", timeout=0.2, **drawing)
    counts.append(num_sampled(endpoint))
    whole, streamed, timed_out = np.diff(counts)
    assert 0 < streamed < whole / 2
    assert timed_out < whole


@pytest.fixture
def served(qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with serving(qwen3_dir, tmp_path / "store") as served:
        yield served


def die() -> Result:
    raise SystemExit("the disk is gone")


def test_few_weights_are_held_a_path_is_what_it_names_now_and_failures_end_a_stream(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(completions, "MAX_HELD", 1)
    client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY, max_retries=0)
    drawing: Any = {"temperature": 0, "max_tokens": 12}
    with served.client() as service:
        run = trained_client(service, "qwen3")
        saved = [run.save_weights_for_sampler(f"at-{i}").result().path for i in range(3)]
        state = run.save_state("last").result().path
        first = [chat(client, str(path), **drawing).choices for path in saved]
        assert first[0] == first[1] == first[2]
        num_kept = 2  # the one held, and the next one to be let go
        assert len(list(served.core.store.directory.glob("snapshots/*/openai*"))) <= num_kept
        before = chat(client, state, **drawing).choices
        train(run, 3, seed=7)
        run.save_state("last", overwrite=True).result()
        assert chat(client, state, **drawing).choices != before
        tinker.RestClient(base_url=served.base_url, api_key=KEY).delete_checkpoint_from_tinker_path(
            state
        ).result()
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            chat(client, state)

        monkeypatch.setattr(queue, "MAX_QUEUED", 1)
        stream = chat(client, "qwen3", stream=True, n=64, max_tokens=450)
        with pytest.raises(openai.RateLimitError, match="at most 1"):
            chat(client, "qwen3", max_tokens=1)
        open_promise = served.core.promises.get(f"{run.model_id}:0")
        assert open_promise is not None
        served.core.engine.submit("test", die, Promise("test", open_promise._loop))
        with pytest.raises(openai.APIError, match="engine has stopped"):
            list(stream)


def test_a_servers_seed_decides_where_requests_bring_none(
    qwen3_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    drawn = []
    for start in range(2):
        with serving(qwen3_dir, tmp_path / str(start), seed=5) as served:
            client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY)
            drawn += [token_ids(chat(client, "qwen3", max_tokens=9, extra_body=IDS)) for _ in "ab"]
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


def test_a_model_without_a_chat_template_completes_and_does_not_chat(
    tmp_path: Path, served: Served
):
    served.core.bases["qwen3"].tokenizer.chat_template = None
    client = openai.OpenAI(base_url=f"{served.base_url}/v1", api_key=KEY)
    with pytest.raises(openai.BadRequestError, match="has no chat template; use /v1/completions"):
        chat(client, "qwen3")
    assert client.completions.create(model="qwen3", prompt="1 + 1").usage.completion_tokens  # pyright: ignore

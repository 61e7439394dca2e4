"""Checkpoints go on where they were, outlive the server, and can be listed and downloaded."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tinker
from tinker import types

from tests.clients import (
    download,
    forward,
    make_datum,
    prompt_logprobs,
    random_tokens,
    train,
    trained_client,
)
from tests.reference import Reference, read_adapter
from tinsmith.serving import Endpoint

TOKENS = random_tokens(0, 40)


@pytest.mark.parametrize("model", ["qwen3", "llama"])
def test_a_run_goes_on_bit_by_bit_from_its_state_with_optimizer(
    service: tinker.ServiceClient, model: str
):
    client = trained_client(service, model)
    path = client.save_state("middle").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert forward(resumed, TOKENS) == forward(client, TOKENS)
    train(client, 3, seed=9)
    train(resumed, 3, seed=9)
    assert forward(resumed, TOKENS) == forward(client, TOKENS)


def test_a_run_from_a_state_alone_has_its_weights_and_fresh_moments(service: tinker.ServiceClient):
    client = trained_client(service, "qwen3")
    path = client.save_state("middle").result().path
    fresh = service.create_training_client_from_state(path).result()
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    assert fresh.get_info().lora_rank == 4
    assert forward(fresh, TOKENS) == forward(client, TOKENS)
    for one in (fresh, resumed):
        train(one, 1, seed=9)
    assert forward(fresh, TOKENS) != pytest.approx(forward(resumed, TOKENS), abs=1e-4)


def test_a_pending_gradient_is_no_part_of_a_state(service: tinker.ServiceClient):
    client = trained_client(service, "qwen3")
    client.forward_backward([make_datum(TOKENS)], "cross_entropy").result()
    path = client.save_state("pending").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    metrics = resumed.optim_step(types.AdamParams(learning_rate=0.0)).result().metrics
    assert metrics is not None
    assert metrics["grad_norm"] == 0


@pytest.mark.filterwarnings("ignore:DEPRECATED")
@pytest.mark.parametrize("name", ["load_state", "load_state_with_optimizer"])
def test_a_state_loaded_into_a_trained_model_makes_it_go_on_as_a_new_one_from_it(
    service: tinker.ServiceClient, name: str
):
    path = trained_client(service, "qwen3").save_state("middle").result().path
    new = getattr(service, name.replace("load_state", "create_training_client_from_state"))(path)
    old = trained_client(service, "qwen3", seed=2)
    old.forward_backward([make_datum(TOKENS)], "cross_entropy")  # this gradient must be dropped
    assert getattr(old, name)(path).result().path == path
    for client in (new.result(), old):
        train(client, 2, seed=9)
    assert forward(old, TOKENS) == forward(new.result(), TOKENS)


@pytest.mark.filterwarnings("ignore:DEPRECATED")
def test_a_state_is_not_loaded_into_a_model_of_another_rank_or_base(service: tinker.ServiceClient):
    path = trained_client(service, "qwen3", rank=4).save_state("middle").result().path
    for model, rank in (("qwen3", 2), ("llama", 4)):
        other = service.create_lora_training_client(model, rank=rank).result()
        with pytest.raises(tinker.RequestFailedError, match="create_training_client_from_state"):
            other.load_state(path).result()
        forward(other, TOKENS)


def test_saved_weights_sample_as_they_were_when_saved(service: tinker.ServiceClient):
    client = trained_client(service, "llama")
    truth = forward(client, TOKENS)
    paths = [
        client.save_weights_for_sampler("final").result().path,
        client.save_state("final").result().path,
    ]
    train(client, 2, seed=7)
    for path in paths:
        sampler = service.create_sampling_client(model_path=path).result()
        assert sampler.get_base_model() == "llama"
        assert prompt_logprobs(sampler, TOKENS) == pytest.approx(truth, abs=1e-5)


def test_a_checkpoint_is_not_overwritten_unless_asked(service: tinker.ServiceClient):
    client = trained_client(service, "llama", steps=1)
    path = client.save_state("twice").result().path
    train(client, 1, seed=2)
    with pytest.raises(tinker.RequestFailedError, match="exists already"):
        client.save_state("twice").result()
    assert client.save_state("twice", overwrite=True).result().path == path
    again = service.create_training_client_from_state(path).result()
    assert forward(again, TOKENS) == forward(client, TOKENS)


def test_an_external_checkpoint_is_a_peft_adapter(
    service: tinker.ServiceClient, model_dirs: dict[str, Path], tmp_path: Path
):
    client = trained_client(service, "llama", rank=3)
    folder = download(client.save_weights_external("final").result().path, tmp_path)
    assert {f.name for f in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    pairs, scaling = read_adapter(folder)
    assert scaling == 32 / 3
    truth = Reference.load(model_dirs["llama"]).logprobs(TOKENS[:-1], TOKENS[1:], pairs, scaling)
    assert forward(client, TOKENS) == pytest.approx(truth.tolist(), abs=1e-5)


def test_a_download_link_gives_its_own_files_only(
    service: tinker.ServiceClient, endpoint: Endpoint
):
    import httpx

    path = trained_client(service, "llama").save_weights_external("links").result().path
    urls = tinker.RestClient().get_external_weights_urls(path).result().urls
    good = urls["adapter_config.json"]
    assert good.startswith(endpoint.base_url)
    assert httpx.get(good).status_code == 200
    parent = good.rsplit("/", 1)[0]
    for name in ("optimizer.safetensors", "..%2F..%2F..%2Ftinsmith.sqlite", "%2Fetc%2Fpasswd"):
        assert httpx.get(f"{parent}/{name}").status_code == 404
    assert httpx.get(f"{endpoint.base_url}/files/guess/adapter_config.json").status_code == 404


def test_runs_and_checkpoints_are_listed(service: tinker.ServiceClient):
    client = service.create_lora_training_client(
        "qwen3", rank=5, user_metadata={"renderer_name": "chat"}
    ).result()
    train(client, 1)
    state = client.save_state("a", user_metadata={"step": "1"}).result().path
    sampler = client.save_weights_for_sampler("b", ttl_seconds=3600).result().path
    external = client.save_weights_external("c").result().path
    rest = tinker.RestClient()
    run = rest.get_training_run(client.model_id).result()
    assert run == rest.get_training_run_by_tinker_path(state).result()
    assert (run.base_model, run.lora_rank, run.is_lora) == ("qwen3", 5, True)
    assert run.user_metadata == {"renderer_name": "chat"}
    assert run.last_checkpoint is not None
    assert run.last_checkpoint.tinker_path == state
    assert run.last_sampler_checkpoint is not None
    assert run.last_sampler_checkpoint.tinker_path == sampler
    assert run.training_run_id in {
        r.training_run_id for r in rest.list_training_runs().result().training_runs
    }
    found = {c.tinker_path: c for c in rest.list_checkpoints(client.model_id).result().checkpoints}
    assert {path: c.checkpoint_type for path, c in found.items()} == {
        state: "training", sampler: "sampler", external: "external",
    }  # fmt: skip
    assert found[state].checkpoint_id == "weights/a"
    assert found[state].user_metadata == {"step": "1"}
    assert (found[state].size_bytes or 0) > (found[sampler].size_bytes or 0) > 0
    assert found[state].expires_at is None
    assert found[sampler].expires_at is not None
    listed = rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert set(found) <= {c.tinker_path for c in listed}
    assert rest.get_weights_info_by_tinker_path(state).result().base_model == "qwen3"


def test_pages_of_runs_cover_all_runs_once(service: tinker.ServiceClient):
    for _ in range(3):
        service.create_lora_training_client("llama", rank=1).result()
    rest = tinker.RestClient()
    every = rest.list_training_runs(limit=1000).result()
    total = every.cursor.total_count
    assert total == len(every.training_runs) >= 3
    pages = [
        rest.list_training_runs(limit=2, offset=offset).result().training_runs
        for offset in range(0, total, 2)
    ]
    assert [r.training_run_id for page in pages for r in page] == [
        r.training_run_id for r in every.training_runs
    ]


def test_the_server_tells_which_models_it_has(service: tinker.ServiceClient):
    models = service.get_server_capabilities().supported_models
    assert {m.model_name: m.max_context_length for m in models} == {"qwen3": 512, "llama": 512}


@contextmanager
def serving(model: Path, store: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`tinsmith serve` as a user starts it, and its address."""
    command = [sys.executable, "-m", "tinsmith.cli", "serve", "--port=0", f"--store={store}"]
    process = subprocess.Popen(
        [*command, f"--model=qwen3={model}", "--threads=1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | {"TINSMITH_API_KEY": "tml-restart"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        [address] = [line.split()[-1] for line in process.stdout.readline().splitlines()]
        yield process, address
    finally:
        process.kill()
        process.wait()


def test_every_checkpoint_is_served_after_the_server_was_killed(
    service: tinker.ServiceClient, qwen3_dir: Path, tmp_path: Path
):
    store = tmp_path / "store"
    with serving(qwen3_dir, store) as (process, address):
        first = tinker.ServiceClient(base_url=address, api_key="tml-restart")
        client = trained_client(first, "qwen3")
        expected = forward(client, TOKENS)
        states = [client.save_state("a").result().path]
        sampler = client.save_weights_for_sampler("b").result().path
        train(client, 2, seed=3)
        states.append(client.save_state("a2").result().path)
        later = forward(client, TOKENS)
        train(client, 2, seed=4)
        goal = forward(client, TOKENS)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(qwen3_dir, store) as (_, address):
        second = tinker.ServiceClient(base_url=address, api_key="tml-restart")
        found = service_paths(address)
        assert found == {*states, sampler}
        resumed = second.create_training_client_from_state_with_optimizer(states[1]).result()
        assert forward(resumed, TOKENS) == later
        train(resumed, 2, seed=4)
        assert forward(resumed, TOKENS) == goal
        for path in (states[0], sampler):
            client = second.create_sampling_client(model_path=path).result()
            assert prompt_logprobs(client, TOKENS) == pytest.approx(expected, abs=1e-5)


def service_paths(address: str) -> set[str]:
    rest = tinker.RestClient(base_url=address, api_key="tml-restart")
    return {c.tinker_path for c in rest.list_user_checkpoints().result().checkpoints}


def test_a_checkpoint_ends_with_its_time_to_live(service: tinker.ServiceClient):
    client = trained_client(service, "llama", steps=1)
    short = client.save_state("short", ttl_seconds=1).result().path
    long = client.save_state("long").result().path
    time.sleep(1.1)
    listed = tinker.RestClient().list_checkpoints(client.model_id).result().checkpoints
    assert [c.tinker_path for c in listed] == [long]
    with pytest.raises(tinker.RequestFailedError, match="does not exist"):
        service.create_training_client_from_state(short).result()

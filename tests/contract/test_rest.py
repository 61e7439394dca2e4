"""Sessions, runs and checkpoints can be found, kept, copied, encrypted and removed by the SDK."""

import asyncio
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyrage
import pytest
import tinker
from tinker import types

from tests.clients import download, forward, prompt_logprobs, random_tokens, trained_client
from tests.reference import read_adapter
from tinsmith.serving import Endpoint

TOKENS = random_tokens(0, 20)
age: Any = pyrage  # a compiled module, without types


@pytest.fixture(scope="module")
def trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return trained_client(service, "llama", steps=1)


def found(rest: tinker.RestClient, path: str) -> types.Checkpoint:
    run = types.ParsedCheckpointTinkerPath.from_tinker_path(path).training_run_id
    [checkpoint] = [
        one for one in rest.list_checkpoints(run).result().checkpoints if one.tinker_path == path
    ]
    return checkpoint


def paths_of(rest: tinker.RestClient, model_id: str) -> set[str]:
    return {c.tinker_path for c in rest.list_checkpoints(model_id).result().checkpoints}


def test_a_deleted_checkpoint_is_gone_and_no_other(
    rest: tinker.RestClient, trainer: tinker.TrainingClient
):
    before = paths_of(rest, trainer.model_id)
    path = trainer.save_state("delete-me").result().path
    kept = trainer.save_weights_for_sampler("delete-me").result().path
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert paths_of(rest, trainer.model_id) == before | {kept}
    with pytest.raises(tinker.NotFoundError, match="delete-me does not exist"):
        rest.delete_checkpoint(trainer.model_id, "weights/delete-me").result()
    assert trainer.save_state("delete-me").result().path == path


def test_a_published_checkpoint_is_marked_until_it_is_unpublished(
    rest: tinker.RestClient, trainer: tinker.TrainingClient
):
    path = trainer.save_state("publish-me").result().path
    assert not found(rest, path).public
    for _ in range(2):  # the second time changes nothing
        rest.publish_checkpoint_from_tinker_path(path).result()
        assert found(rest, path).public
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not found(rest, path).public
    with pytest.raises(tinker.NotFoundError, match="does not exist"):
        rest.publish_checkpoint_from_tinker_path(f"{path}x").result()


def test_the_time_to_live_of_a_checkpoint_can_be_set_and_lifted(
    rest: tinker.RestClient, trainer: tinker.TrainingClient
):
    path = trainer.save_state("ttl").result().path
    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    expires = found(rest, path).expires_at
    assert expires is not None
    assert abs(expires - datetime.now(UTC) - timedelta(hours=2)) < timedelta(minutes=5)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert found(rest, path).expires_at is None
    for wrong in (0, -5, 10**12):
        with pytest.raises(tinker.UnprocessableEntityError, match="ttl_seconds"):
            rest.set_checkpoint_ttl_from_tinker_path(path, wrong).result()
    assert found(rest, path).expires_at is None


def test_an_expired_checkpoint_leaves_the_disk_without_being_asked_for(
    endpoint_store: Path, trainer: tinker.TrainingClient
):
    trainer.save_weights_for_sampler("short-lived", ttl_seconds=1).result()

    def files() -> list[Path]:
        return list(endpoint_store.rglob("short-lived-*"))

    assert files()
    deadline = time.monotonic() + 60
    while files() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not files()


def test_a_copy_has_the_weights_and_outlives_its_source(
    rest: tinker.RestClient, service: tinker.ServiceClient, trainer: tinker.TrainingClient
):
    truth = forward(trainer, TOKENS)
    for save in (trainer.save_state, trainer.save_weights_for_sampler):
        source = save("to-copy").result().path
        copy = rest.copy_weights(source, "archive", ttl_seconds=3600).result()
        assert copy != source
        assert copy.endswith(source.split("/", 3)[-1])  # kind and name
        assert found(rest, copy).expires_at is not None
        rest.delete_checkpoint_from_tinker_path(source).result()
        sampler = service.create_sampling_client(model_path=copy).result()
        assert prompt_logprobs(sampler, TOKENS) == pytest.approx(truth, abs=1e-5)
        if "/weights/" in copy:
            resumed = service.create_training_client_from_state_with_optimizer(copy).result()
            assert forward(resumed, TOKENS) == truth
        run = copy.split("/")[2]
        assert run in {
            one.training_run_id
            for one in rest.list_training_runs(project_id="archive").result().training_runs
        }
        assert rest.get_training_run(run).result().base_model == "llama"


def test_a_copy_that_is_asked_for_twice_is_made_once(
    endpoint: Endpoint, trainer: tinker.TrainingClient
):
    source = trainer.save_state("copied-twice").result().path
    session = trainer.model_id.split(":")[0]
    url = f"{endpoint.base_url}/api/v1/copy_weights"

    def copy(key: str, **target: object) -> httpx.Response:
        headers = {"X-API-Key": endpoint.api_key, "X-Idempotency-Key": key}
        body = {"source_path": source, **target}
        return httpx.post(url, json=body, headers=headers, timeout=60)

    answers = [copy(key, destination_project_id="p").json() for key in ("a", "a", "b")]
    assert answers[0] == answers[1] != answers[2]
    unused = 10_000  # the session's SDK counts its own models up from 0
    own = copy("c", session_id=session, model_seq_id=unused).json()
    assert own["tinker_path"] == f"tinker://{session}:train:{unused}/weights/copied-twice"
    taken = copy("d", session_id=session, model_seq_id=int(trainer.model_id.split(":")[-1]))
    assert taken.json().get("tinker_path") == source or "exists already" in taken.json()["error"]
    assert "needs destination_project_id, or session_id" in copy("e").json()["error"]


def test_an_encrypted_export_opens_with_the_key_and_is_the_plain_one(
    trainer: tinker.TrainingClient, tmp_path: Path
):
    keys = [age.x25519.Identity.generate() for _ in range(2)]
    recipients = [str(key.to_public()) for key in keys]
    path = trainer.save_weights_external("closed", age_encryption_recipients=recipients).result()
    (tmp_path / "closed").mkdir()
    closed = download(path.path, tmp_path / "closed")
    names = {"adapter_config.json", "adapter_model.safetensors"}
    assert {file.name for file in closed.iterdir()} == {f"{name}.age" for name in names}
    (tmp_path / "open").mkdir()
    plain = download(trainer.save_weights_external("open").result().path, tmp_path / "open")
    for name in names:
        sealed = (closed / f"{name}.age").read_bytes()
        assert sealed.startswith(b"age-encryption.org/v1")
        for key in keys:
            assert age.decrypt(sealed, [key]) == (plain / name).read_bytes()
        with pytest.raises(age.DecryptError):
            age.decrypt(sealed, [age.x25519.Identity.generate()])
    assert read_adapter(plain)[1] == 32 / 4


@pytest.mark.parametrize(
    ("recipients", "message"),
    [([], "must be 1 to 10 public keys, got 0"), (["age1q"] * 11, "1 to 10 public keys, got 11"),
     (["ssh-rsa AAAA"], r"recipients\[0\]: must be an age1... key or an SSH public key")],
)  # fmt: skip
def test_what_nobody_could_open_is_not_written(
    rest: tinker.RestClient,
    trainer: tinker.TrainingClient,
    recipients: list[str],
    message: str,
):
    before = paths_of(rest, trainer.model_id)
    with pytest.raises(tinker.RequestFailedError, match=message):
        trainer.save_weights_external("never", age_encryption_recipients=recipients).result()
    assert paths_of(rest, trainer.model_id) == before


REFUSED: dict[str, tuple[Callable[[tinker.RestClient, tinker.AdminClient], Any], str]] = {
    "audit": (lambda _, a: a.get_audit_log(), "no accounts and no organisation"),
    "billing": (
        lambda _, a: a.get_billing_usage("2026-07-13T00:00:00Z", "2026-07-14T00:00:00Z"),
        "nothing is billed",
    ),
    "storage": (
        lambda _, a: a.get_current_checkpoint_storage_usage(),
        "list_user_checkpoints gives the size",
    ),
    "project": (lambda r, _: r.assign_session_project("s", "p"), "no projects to move"),
    "trace": (lambda r, _: r.export_session_trace("s"), "no timeline"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_matters_of_an_organisation_are_refused_with_the_reason(
    rest: tinker.RestClient, endpoint: Endpoint, case: str
):
    act, message = REFUSED[case]
    admin = tinker.AdminClient(base_url=endpoint.base_url, api_key=endpoint.api_key)
    with pytest.raises(tinker.BadRequestError, match=f"is not offered: .*{message}"):
        act(rest, admin).result(timeout=30)


def test_another_accounts_token_is_refused(
    rest: tinker.RestClient, service: tinker.ServiceClient, trainer: tinker.TrainingClient
):
    path = trainer.save_state("token").result().path
    copy = rest.copy_weights(path, "p", weights_access_token="secret")
    load = service.create_training_client_from_state(path, weights_access_token="secret")
    for refused in (copy, load):
        with pytest.raises(tinker.BadRequestError, match="this server has no accounts"):
            refused.result()


def test_a_checkpoint_of_another_kind_is_refused_where_a_state_is_needed(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient
):
    path = trainer.save_weights_for_sampler("weights-alone").result().path
    with pytest.raises(tinker.TinkerError, match=r"needed: weights \(save_state makes one"):
        service.create_training_client_from_state(path).result()


@pytest.mark.filterwarnings("ignore")
def test_the_deprecated_async_methods_answer_as_the_others_do(rest: tinker.RestClient):
    async def ask() -> None:
        runs = await rest.list_training_runs_async(limit=1)
        run = runs.training_runs[0].training_run_id
        assert (await rest.get_training_run_async(run)).training_run_id == run
        assert await rest.list_checkpoints_async(run) == rest.list_checkpoints(run).result()
        assert (await rest.list_sessions_async(limit=1)).sessions
        assert (await rest.list_user_checkpoints_async(limit=1)).cursor is not None

    with warnings.catch_warnings():
        asyncio.run(ask())


def test_who_one_is_cannot_be_told_without_accounts(rest: tinker.RestClient):
    with pytest.raises(RuntimeError, match="whoami requires JWT auth"):
        rest.whoami().result()

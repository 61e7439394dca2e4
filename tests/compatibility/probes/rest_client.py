"""RestClient."""

import urllib.request
from datetime import date

from tinker import types

from tests.compatibility.calls import Call, settle
from tests.compatibility.context import MODEL, Context, loss_of


def assign_session_project(c: Context, call: Call) -> None:
    call(c.rest, c.session_id, "some-project")


def copy_weights(c: Context, call: Call) -> None:
    copied = settle(c.service.create_training_client_from_state(call(c.rest, c.state, "mine")))
    assert loss_of(copied) == loss_of(c.training)


def delete_checkpoint(c: Context, call: Call) -> None:
    path = c.new_state()
    call(c.rest, c.training.model_id, path.split("/", 3)[3])
    assert path not in c.checkpoints()


def delete_checkpoint_from_tinker_path(c: Context, call: Call) -> None:
    path = c.new_state()
    call(c.rest, path)
    assert path not in c.checkpoints()


def export_session_trace(c: Context, call: Call) -> None:
    with urllib.request.urlopen(call(c.rest, c.session_id)) as response:
        assert response.read()


def get_audit_log(c: Context, call: Call) -> None:
    call(c.rest, day=date(2026, 1, 1))


def get_billing_usage(c: Context, call: Call) -> None:
    call(c.rest, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


def get_checkpoint_archive_url(c: Context, call: Call) -> None:
    call(c.rest, c.training.model_id, c.new_sampler_weights().split("/", 3)[3])


def get_checkpoint_archive_url_from_tinker_path(c: Context, call: Call) -> None:
    call(c.rest, c.new_sampler_weights())


def get_current_checkpoint_storage_usage(c: Context, call: Call) -> None:
    call(c.rest)


def get_external_weights_urls(c: Context, call: Call) -> None:
    urls = call(c.rest, c.new_external_weights()).urls
    with urllib.request.urlopen(urls["adapter_config.json"]) as response:
        assert b'"r": 4' in response.read()


def get_sampler(c: Context, call: Call) -> None:
    settle(c.service.create_sampling_client(base_model=MODEL))
    sampler_id = settle(c.rest.get_session(c.session_id)).sampler_ids[-1]
    assert call(c.rest, sampler_id).base_model == MODEL


def get_server_capabilities(c: Context, call: Call) -> None:
    assert MODEL in [model.model_name for model in call(c.rest).supported_models]


def get_session(c: Context, call: Call) -> None:
    assert c.training.model_id in call(c.rest, c.session_id).training_run_ids


def get_telemetry(c: Context, call: Call) -> None:
    assert call(c.rest) is not None


def get_training_run(c: Context, call: Call) -> None:
    run = call(c.rest, c.training.model_id)
    assert (run.base_model, run.lora_rank) == (MODEL, 4)


def get_training_run_by_tinker_path(c: Context, call: Call) -> None:
    assert call(c.rest, c.state).training_run_id == c.training.model_id


def get_weights_info_by_tinker_path(c: Context, call: Call) -> None:
    info = call(c.rest, c.state)
    assert (info.base_model, info.is_lora, info.lora_rank) == (MODEL, True, 4)


def list_checkpoints(c: Context, call: Call) -> None:
    path = c.new_state()
    found = call(c.rest, c.training.model_id).checkpoints
    assert path in [checkpoint.tinker_path for checkpoint in found]


def list_sessions(c: Context, call: Call) -> None:
    assert c.session_id in call(c.rest, limit=1000).sessions


def list_training_runs(c: Context, call: Call) -> None:
    runs = call(c.rest, limit=1000).training_runs
    assert c.training.model_id in [run.training_run_id for run in runs]


def list_user_checkpoints(c: Context, call: Call) -> None:
    path = c.new_state()
    found = call(c.rest, limit=1000).checkpoints
    assert path in [checkpoint.tinker_path for checkpoint in found]


def publish_checkpoint_from_tinker_path(c: Context, call: Call) -> None:
    path = c.new_sampler_weights()
    call(c.rest, path)
    assert c.checkpoints()[path].public


def search_sessions(c: Context, call: Call) -> None:
    found = call(c.rest, types.SessionSearchRequest(session_id=c.session_id)).sessions
    assert len(found) == 1


def set_checkpoint_ttl_from_tinker_path(c: Context, call: Call) -> None:
    path = c.new_state()
    call(c.rest, path, 3600)
    assert c.checkpoints()[path].expires_at is not None


def unpublish_checkpoint_from_tinker_path(c: Context, call: Call) -> None:
    path = c.new_sampler_weights()
    settle(c.rest.publish_checkpoint_from_tinker_path(path))
    call(c.rest, path)
    assert not c.checkpoints()[path].public


def whoami(c: Context, call: Call) -> None:
    assert call(c.rest).user_urn

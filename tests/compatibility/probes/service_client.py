"""ServiceClient."""

import tinker

from tests.compatibility.calls import Call, settle
from tests.compatibility.context import MODEL, Context, loss_of, prompt


def close(_: Context, call: Call) -> None:
    service = tinker.ServiceClient()
    client = settle(service.create_lora_training_client(MODEL, rank=1))
    call(service, "success")
    assert client.model_id


def copy_weights(c: Context, call: Call) -> None:
    copy = call(tinker.ServiceClient(project_id="mine"), c.state)
    assert copy != c.state
    copied = settle(c.service.create_training_client_from_state(copy))
    assert loss_of(copied) == loss_of(c.training)


def create_custom_loss(c: Context, call: Call) -> None:
    def squares(logprobs, weights):
        loss = (weights * logprobs**2).sum()
        return loss, {"custom/squares:sum": loss}

    call(c.service, squares, {"logprobs": 1, "weights": 1})


def create_lora_training_client(c: Context, call: Call) -> None:
    client = call(c.service, MODEL, rank=3, seed=5, train_mlp=False, user_metadata={"a": "b"})
    info = settle(c.rest.get_training_run(client.model_id))
    assert (info.lora_rank, info.base_model, info.user_metadata) == (3, MODEL, {"a": "b"})


def create_rest_client(c: Context, call: Call) -> None:
    assert settle(call(c.service).list_training_runs(limit=1)).cursor.limit == 1


def create_sampling_client(c: Context, call: Call) -> None:
    base = settle(call(c.service, base_model=MODEL).compute_logprobs(prompt()))
    named = call(c.service, model_path=c.new_sampler_weights())
    assert settle(named.compute_logprobs(prompt())) != base


def create_training_client_from_state(c: Context, call: Call) -> None:
    assert loss_of(call(c.service, c.state)) == loss_of(c.training)


create_training_client_from_state_with_optimizer = create_training_client_from_state


def get_console_url(c: Context, call: Call) -> None:
    assert c.session_id in call(c.service)


def get_server_capabilities(c: Context, call: Call) -> None:
    names = [model.model_name for model in call(c.service).supported_models]
    assert MODEL in names


def get_telemetry(c: Context, call: Call) -> None:
    telemetry = call(c.service)
    assert telemetry is not None
    telemetry.log("probe", severity="INFO")

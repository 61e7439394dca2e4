"""TrainingClient."""

from tinker import types

from tests.compatibility.calls import Call, settle
from tests.compatibility.context import MODEL, TOKENS, Context, datum, loss_of, prompt


def create_sampling_client(c: Context, call: Call) -> None:
    client = call(c.training, c.new_sampler_weights())
    assert len(settle(client.compute_logprobs(prompt()))) == len(TOKENS)


def forward(c: Context, call: Call) -> None:
    before = loss_of(c.training)
    output = call(c.training, [datum()], "cross_entropy")
    logprobs = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    assert len(logprobs) == len(TOKENS) - 1
    assert abs(output.metrics["loss:sum"] + logprobs.sum()) < 1e-3
    assert loss_of(c.training) == before


def forward_backward(c: Context, call: Call) -> None:
    client = c.new_training()
    before = loss_of(client)
    assert call(client, [datum()], "cross_entropy").metrics["loss:sum"] == before
    settle(client.optim_step(types.AdamParams(learning_rate=0.01)))
    assert loss_of(client) < before


def forward_backward_custom(c: Context, call: Call) -> None:
    def negative_likelihood(data, logprobs):
        return -logprobs[0].sum(), {"mine": 7.0}

    client = c.new_training()
    before = loss_of(client)
    metrics = call(client, [datum()], negative_likelihood).metrics
    assert metrics["mine"] == 7.0
    settle(client.optim_step(types.AdamParams(learning_rate=0.01)))
    assert loss_of(client) < before


def get_console_url(c: Context, call: Call) -> None:
    assert call(c.training).startswith("https://")


def get_info(c: Context, call: Call) -> None:
    info = call(c.training)
    assert (info.model_id, info.lora_rank) == (c.training.model_id, 4)
    assert info.model_data.model_name == MODEL


def get_telemetry(c: Context, call: Call) -> None:
    assert call(c.training) is not None


def get_tokenizer(c: Context, call: Call) -> None:
    assert call(c.training).decode(TOKENS)


def load_state(c: Context, call: Call) -> None:
    path, loss = c.new_state(), loss_of(c.training)
    client = c.new_training()
    settle(client.forward_backward([datum()], "cross_entropy"))
    settle(client.optim_step(types.AdamParams(learning_rate=0.1)))
    assert loss_of(client) != loss
    assert call(client, path).path == path
    assert loss_of(client) == loss


load_state_with_optimizer = load_state


def optim_step(c: Context, call: Call) -> None:
    client = c.new_training()
    settle(client.forward_backward([datum()], "cross_entropy"))
    before = loss_of(client)
    stepped = call(client, types.AdamParams(learning_rate=0.01, weight_decay=0.1, eps=1e-8))
    assert stepped.metrics["grad_norm"] > 0
    assert loss_of(client) < before


def save_state(c: Context, call: Call) -> None:
    path = call(c.training, c.new_name(), ttl_seconds=3600).path
    assert path in c.checkpoints()


def save_weights_and_get_sampling_client(c: Context, call: Call) -> None:
    logprobs = settle(call(c.training).compute_logprobs(prompt()))
    assert abs(sum(logprobs[1:]) + loss_of(c.training)) < 1e-3


save_weights_and_get_sampling_client_submit = save_weights_and_get_sampling_client


def save_weights_external(c: Context, call: Call) -> None:
    path = call(c.training, c.new_name()).path
    assert "adapter_config.json" in settle(c.rest.get_external_weights_urls(path)).urls


def save_weights_for_sampler(c: Context, call: Call) -> None:
    assert call(c.training, c.new_name()).path in c.checkpoints()

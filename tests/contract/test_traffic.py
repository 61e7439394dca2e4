"""Recorded traffic: complete, readable, without secrets, and good for the same answers again."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tinker
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

from tests.clients import Params, make_datum, train
from tinsmith.backend.wire.traffic.exchange import Exchange
from tinsmith.backend.wire.traffic.messages import from_json, to_json
from tinsmith.backend.wire.traffic.replay import Replay
from tinsmith.cli import main
from tinsmith.errors import TinsmithError
from tinsmith.serving import Endpoint, local_server

TOKENS = [5, 6, 7, 8]
SECRET = "a-token-of-somebody-else"


def program(endpoint: Endpoint, seed: int = 3) -> list[Any]:
    """What a program that trains, samples, saves and looks around sees of a server."""
    with tinker.ServiceClient(base_url=endpoint.base_url, api_key=endpoint.api_key) as service:
        run = service.create_lora_training_client("qwen3", rank=2, seed=1).result()
        train(run, 2)
        scored = run.forward([make_datum(TOKENS)], "cross_entropy").result()
        sampler = run.save_weights_and_get_sampling_client().result()
        drawn = sampler.sample(
            types.ModelInput.from_ints(TOKENS), 2, Params(max_tokens=5, seed=seed),
            include_prompt_logprobs=True, topk_prompt_logprobs=2,
        ).result()  # fmt: skip
        path = run.save_state("a").result().path
        with pytest.raises(tinker.APIError) as refused:
            service.create_training_client_from_state(path, weights_access_token=SECRET).result()
        client = openai.OpenAI(base_url=f"{endpoint.base_url}/v1", api_key=endpoint.api_key)
        stream = client.completions.create(
            model=path, prompt="1 + 1", seed=1, max_tokens=9, stream=True
        )
        texts = [chunk.choices[0].text for chunk in stream]
    sequences = [(one.tokens, one.logprobs, one.stop_reason) for one in drawn.sequences]
    logprobs = scored.loss_fn_outputs[0]["logprobs"].tolist()
    return [scored.metrics, logprobs, sequences, drawn.prompt_logprobs, drawn.topk_prompt_logprobs,
            path, texts, str(refused.value)]  # fmt: skip


@contextmanager
def pointed_at(models: dict[str, str], *options: str) -> Iterator[Endpoint]:
    with local_server(models, options) as endpoint, pytest.MonkeyPatch.context() as patch:
        for variable, value in endpoint.environment().items():
            patch.setenv(variable, value)
        yield endpoint


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording, what the program saw when it was made, and the key that it was made with."""

    path: Path
    seen: list[Any]
    api_key: str

    def lines(self, path: str) -> list[dict[str, Any]]:
        every = [json.loads(line) for line in self.path.read_text().splitlines()]
        return [line for line in every if line["path"] == path]


@pytest.fixture(scope="module")
def recorded(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("traffic")
    path = folder / "made" / "traffic.jsonl"
    options = [f"--store={folder / 'store'}", "--threads=1", f"--record={path}"]
    with pointed_at({"qwen3": str(qwen3_dir)}, *options) as endpoint:
        return Recorded(path, program(endpoint), endpoint.api_key)


def test_a_recording_answers_a_program_as_the_server_did_without_its_model(recorded: Recorded):
    with pointed_at({}, f"--replay={recorded.path}") as endpoint:
        assert program(endpoint) == recorded.seen
        with pytest.raises(tinker.BadRequestError, match=r"sampling_params\.seed: 3 recorded, 4"):
            program(endpoint, seed=4)
        with pytest.raises(openai.BadRequestError, match="never asked there"):
            openai.OpenAI(
                base_url=f"{endpoint.base_url}/v1", api_key=endpoint.api_key
            ).models.list()
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{endpoint.base_url}/v1", api_key="tml-x").models.list()


def test_a_recording_is_readable(recorded: Recorded):
    scoring = recorded.lines("/api/v1/forward_backward")[-1]
    [datum] = scoring["request"]["content"]["data"]
    assert datum["model_input"] == [{"encoded_text": {"tokens": {"int32": TOKENS[:-1]}}}]
    assert datum["loss_fn_inputs"]["target_tokens"]["dense"] == {"int64": TOKENS[1:]}
    answers = [line["response"] for line in recorded.lines("/api/v1/retrieve_future")]
    messages = [answer for answer in answers if "protobuf" in answer]
    [sampled] = [one for one in messages if one["protobuf"] == "SampleResponse"]
    found = [one["tokens"]["int32"] for one in sampled["content"]["sequences"]]
    assert found == [list(tokens) for tokens, _, _ in recorded.seen[2]]
    assert sum(one["protobuf"] == "ForwardBackwardOutput" for one in messages) == 3
    [streamed] = recorded.lines("/v1/completions")
    events = streamed["response"]["events"]
    assert events[-1] == "[DONE]"
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "".join(
        recorded.seen[6]
    )
    assert all(line["status"] == 200 for line in recorded.lines("/api/v1/asample"))


def test_a_recording_holds_no_secret(recorded: Recorded):
    text = recorded.path.read_text()
    assert recorded.api_key not in text
    assert SECRET not in text
    [refused] = [
        line
        for line in recorded.lines("/api/v1/load_weights")
        if "weights_access_token" in line["request"]["json"]
    ]
    assert refused["request"]["json"]["weights_access_token"] == "***"


def some_messages() -> list[Any]:
    sample = pb.SampleResponse(prompt_logprobs=b"", prompt_cache_hit_tokens=3)
    floats = np.array([np.nan, -np.inf, 0.1, -0.0], np.float32)
    sample.sequences.add(stop_reason=1, tokens=b"\1\0\0\0", logprobs=floats.tobytes())
    sample.topk_prompt_logprobs.SetInParent()
    strange = np.array([0xFFC00001], np.uint32).tobytes()  # a NaN of another kind
    sample.prompt_alt_tokens.logprobs.dense = strange
    sample.prompt_alt_tokens.logprobs.dtype = pb.DTYPE_FLOAT32
    request = pb.ForwardBackwardRequest(model_id="m", seq_id=2, forward_only=True)
    request.loss_fn_config["a"] = float("inf")
    request.loss_fn_config_v2["b"].text = "x"
    datum = request.data.add()
    datum.model_input.add().encoded_text.tokens = b"\1\2\3"  # no whole numbers
    datum.model_input.add().image.data = b"png"
    tensor = datum.loss_fn_inputs["weights"]
    tensor.dtype, tensor.shape[:] = pb.DTYPE_FLOAT32, [1, 2]
    tensor.sparse_csr.values = floats.tobytes()
    tensor.sparse_csr.crow_indices = np.arange(3).tobytes()
    output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    output.metrics["loss:sum"] = 0.1
    batched = output.loss_fn_outputs.add(num_datums=1).fields["logprobs"]
    batched.data, batched.dtype = b"\1\2\3\4", pb.DTYPE_BFLOAT16
    return [sample, request, output, pb.SampleResponse()]


@pytest.mark.parametrize("message", some_messages(), ids=lambda m: m.DESCRIPTOR.name)
def test_messages_come_back_from_json_byte_for_byte(message: Any):
    content = json.loads(json.dumps(to_json(message), allow_nan=False))
    again = from_json(type(message), content)
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(
        deterministic=True
    )


def test_answers_come_in_their_order_and_waits_are_left_out(tmp_path: Path):
    path = tmp_path / "traffic.jsonl"
    asked = ("GET", "/api/v1/training_runs", "", None)
    lines = [
        Exchange(number, "", 0.0, *asked, status, {"json": number}).line()
        for number, status in enumerate((408, 200, 429, 200))
    ]
    path.write_text("".join(lines))
    replay = Replay(path)
    question = Exchange(0, "", 0.0, *asked, 0, None)
    assert [replay.answer(question).number for _ in range(3)] == [1, 3, 3]


def test_what_is_no_recording_is_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "traffic.jsonl"
    good = Exchange(1, "", 0.0, "GET", "/", "", None, 200, None).line()
    for content, message in (
        ("", "is empty"),
        (good + "{", "line 2 must be a JSON object"),
        (good + '{"number": 2}\n', "line 2 must be a JSON object with the fields number, time"),
    ):
        path.write_text(content)
        with pytest.raises(TinsmithError, match=message):
            Replay(path)
    with pytest.raises(TinsmithError, match="cannot be read"):
        Replay(tmp_path / "missing")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--replay", "x", "--device=cpu", "--record=y"], "leave out --device, --record"),
        (["--replay", "missing"], "the recording missing cannot be read"),
        (["--model", "m", "--record", "/dev/null/x"], "--record /dev/null/x: cannot be written"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["serve", "--port=0", *words]) == 2
    assert message in capsys.readouterr().err

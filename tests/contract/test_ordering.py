"""Requests of a run act in the order of seq_id and once each, however they are sent."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tinker.proto import tinker_public_pb2 as pb

from tests.clients import random_tokens
from tests.in_process import KEY, Served, serving
from tinsmith.serving import Endpoint

TOKENS = random_tokens(0, 12)


class Wire:
    """A run, spoken to by plain HTTP."""

    def __init__(self, endpoint: Endpoint, base_model: str = "llama") -> None:
        self._client = httpx.Client(
            base_url=f"{endpoint.base_url}/api/v1/",
            headers={"X-API-Key": endpoint.api_key},
            timeout=60,
        )
        session = self.post("create_session", {"sdk_version": "0", "tags": []})["session_id"]
        created = self.post(
            "create_model",
            {"session_id": session, "model_seq_id": 0, "base_model": base_model,
             "lora_config": {"rank": 2, "seed": 1}},
        )  # fmt: skip
        self.model_id = self.result(created)["model_id"]
        assert self.model_id == f"{session}:train:0"

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._client.post(path, json=body)
        answer.raise_for_status()
        return answer.json()

    def result(self, pending: dict[str, Any]) -> Any:
        answer = self._client.post("retrieve_future", json={"request_id": pending["request_id"]})
        answer.raise_for_status()
        if answer.headers["content-type"] == "application/x-protobuf":
            return pb.ForwardBackwardOutput.FromString(answer.content)
        return answer.json()

    def forward_backward(self, seq_id: int, forward_only: bool = False) -> dict[str, Any]:
        message = pb.ForwardBackwardRequest(
            model_id=self.model_id, seq_id=seq_id, loss_fn="cross_entropy",
            forward_only=forward_only,
        )  # fmt: skip
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = np.array(TOKENS[:-1], np.int32).tobytes()
        for name, values, dtype in (
            ("target_tokens", np.array(TOKENS[1:], np.int64), pb.DTYPE_INT64),
            ("weights", np.ones(len(TOKENS) - 1, np.float32), pb.DTYPE_FLOAT32),
        ):
            tensor = datum.loss_fn_inputs[name]
            tensor.dtype = dtype
            tensor.shape.append(len(values))
            tensor.dense = values.tobytes()
        answer = self._client.post(
            "forward_backward",
            content=message.SerializeToString(),
            headers={"Content-Type": "application/x-protobuf"},
        )
        answer.raise_for_status()
        return answer.json()

    def optim_step(self, seq_id: int) -> dict[str, Any]:
        adam = {"learning_rate": 0.01, "eps": 1e-4}
        body = {"model_id": self.model_id, "seq_id": seq_id, "adam_params": adam}
        return self.post("optim_step", body)

    def loss(self, seq_id: int) -> float:
        return self.result(self.forward_backward(seq_id, forward_only=True)).metrics["loss:sum"]


@pytest.fixture
def in_order(endpoint: Endpoint) -> tuple[float, float]:
    """Gradient norm and loss of a run whose requests were sent one by one."""
    wire = Wire(endpoint)
    wire.result(wire.forward_backward(1))
    norm = wire.result(wire.optim_step(2))["metrics"]["grad_norm"]
    return norm, wire.loss(3)


def test_requests_sent_backwards_act_in_order(endpoint: Endpoint, in_order: tuple[float, float]):
    wire = Wire(endpoint)
    last = wire.forward_backward(3, forward_only=True)
    step = wire.optim_step(2)
    first = wire.forward_backward(1)
    assert wire.result(step)["metrics"]["grad_norm"] == in_order[0] > 0
    assert wire.result(last).metrics["loss:sum"] == in_order[1]
    assert wire.result(first).metrics["loss:sum"] > in_order[1]


def test_a_repeated_request_acts_once(endpoint: Endpoint, in_order: tuple[float, float]):
    wire = Wire(endpoint)
    first = [wire.forward_backward(1) for _ in range(3)]
    assert first[0] == first[1] == first[2]
    wire.result(first[0])
    assert wire.forward_backward(1) == first[0]
    steps = [wire.optim_step(2) for _ in range(3)]
    found = [wire.result(step) for step in steps]
    assert found[0] == found[1] == found[2]
    assert found[0]["metrics"]["grad_norm"] == in_order[0]
    assert wire.loss(3) == in_order[1]


def test_a_save_that_is_sent_twice_saves_once(endpoint: Endpoint):
    wire = Wire(endpoint)
    body = {"model_id": wire.model_id, "seq_id": 1, "path": "once"}
    sent = [wire.post("save_weights", body) for _ in range(2)]
    assert sent[0] == sent[1]
    path = f"tinker://{wire.model_id}/weights/once"
    assert [wire.result(one)["path"] for one in sent] == [path, path]
    assert wire.result(wire.post("save_weights", body))["path"] == path
    again = wire.result(wire.post("save_weights", body | {"seq_id": 2}))
    assert "exists already" in again["error"]


def test_a_seq_id_before_the_first_is_refused(endpoint: Endpoint):
    wire = Wire(endpoint)
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        wire.forward_backward(0)
    assert wire.loss(1) > 0


def test_what_waits_is_answered_when_its_session_ends(endpoint: Endpoint):
    wire = Wire(endpoint)
    waits = wire.optim_step(2)
    session = wire.model_id.split(":")[0]
    wire.post(f"sessions/{session}/finish", {"reason": {"type": "interrupted"}})
    assert "its session has ended" in wire.result(waits)["error"]


def test_a_refused_request_does_not_hold_up_those_behind_it(endpoint: Endpoint):
    wire = Wire(endpoint)
    behind = wire.forward_backward(2, forward_only=True)
    body = {"model_id": wire.model_id, "seq_id": 1, "adam_params": {"learning_rate": -1}}
    refused = wire.result(wire.post("optim_step", body))
    assert refused["category"] == "user"
    assert "learning_rate" in refused["error"]
    assert wire.result(behind).metrics["loss:sum"] > 0


def test_a_model_that_is_created_twice_is_one_model(endpoint: Endpoint):
    wire = Wire(endpoint)
    session = wire.model_id.split(":")[0]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "llama"}
    again = wire.result(wire.post("create_model", body))
    assert again["model_id"] == wire.model_id
    assert wire.loss(1) > 0


def test_metrics_and_outputs_have_the_form_of_the_contract(endpoint: Endpoint):
    wire = Wire(endpoint)
    output = wire.result(wire.forward_backward(1))
    assert all(name.count(":") == 1 for name in output.metrics)
    [record] = output.loss_fn_outputs
    assert record.num_datums == 1
    logprobs = record.fields["logprobs"]
    assert np.frombuffer(logprobs.offsets, np.int64).tolist() == [0, 4 * (len(TOKENS) - 1)]
    values = np.frombuffer(logprobs.data, np.float32)
    assert output.metrics["loss:sum"] == pytest.approx(-float(values.sum()), rel=1e-6)


@pytest.fixture(scope="module")
def served(qwen3_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that this process can reach into."""
    with serving(qwen3_dir, tmp_path_factory.mktemp("server") / "store") as served:
        yield served


def test_a_repeated_request_does_not_act_when_its_answer_was_forgotten(served: Served):
    wire = Wire(Endpoint(served.base_url, KEY), "qwen3")
    wire.result(wire.forward_backward(1))
    wire.result(wire.optim_step(2))
    loss = wire.loss(3)
    served.core.promises._promises.clear()
    session = wire.model_id.split(":")[0]
    body = {"session_id": session, "model_seq_id": 0, "base_model": "qwen3"}
    again = wire.result(wire.post("create_model", body))
    assert again == {"type": "create_model", "model_id": wire.model_id}
    for repeated in (wire.forward_backward(1), wire.optim_step(2)):
        assert "is not carried out: it was answered" in wire.result(repeated)["error"]
    assert wire.loss(4) == loss
    assert wire.result(wire.optim_step(5))["metrics"]["grad_norm"] == 0


def test_a_poll_behind_a_request_that_never_comes_ends_with_its_seq_id(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(served.core.sequencer, "_gap_timeout_s", 0.3)
    wire = Wire(Endpoint(served.base_url, KEY), "qwen3")
    answer = wire.result(wire.optim_step(3))
    assert answer["category"] == "user"
    assert "seq_id 1 of model" in answer["error"]
    assert wire.loss(4) > 0

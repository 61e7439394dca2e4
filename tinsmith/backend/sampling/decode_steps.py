"""Steps of running rows: what the model makes of their last tokens.

A step of a few rows is hundreds of small kernels, which a GPU computes faster than Python can ask
for them. Recorded once, as a CUDA graph, they are asked for all at once. A recording reads and
writes the very memory that it was made with: so its inputs have a place of their own, its rows are
filled up to one of a few numbers, it looks at all that the cache has room for, and it is made anew
whenever the cache moves.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import BaseModel, backbone
from tinsmith.backend.sampling.keys_values import RunningKeysValues
from tinsmith.backend.sampling.prompt_keys_values import PromptKeysValues, round_up

# Makes of a computation something that repeats it, on what its inputs hold then.
Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]

ROWS_STEP = 16
# Steps of a number of rows that are computed first. They load kernels and choose among them, which
# recording forbids, and a number that is seldom met again is not worth a recording.
FIRST_RUNS = 2
log = logging.getLogger(__name__)


def hidden_states(
    replica: PreTrainedModel,
    ids_BT: Tensor,
    positions_BT: Tensor,
    keys_values: PromptKeysValues | RunningKeysValues,
) -> Tensor:
    """The backbone's last hidden states [B, T, D]."""
    output = backbone(replica)(
        input_ids=ids_BT,
        position_ids=positions_BT,
        past_key_values=keys_values,
        keys_values=keys_values,
        use_cache=True,
    )
    return output.last_hidden_state


@dataclass(slots=True, eq=False)
class Recording:
    """How the steps of one base model are recorded, until that fails once."""

    make_recorder: Callable[[], Recorder]
    has_failed: bool = False


def recording_of(base: BaseModel) -> Recording | None:
    """None, where steps cannot be recorded: without a GPU, where ranks wait for each other, and
    where what is computed depends on numbers that Python reads (which experts a token goes to,
    rotations that follow the longest sequence)."""
    if base.device.type != "cuda" or base.shards is not None or not is_fixed(base.module):
        return None
    return Recording(partial(cuda_recorder, base.device))


def is_fixed(module: PreTrainedModel) -> bool:
    """Whether a step's operations are the same whatever its numbers are."""
    has_experts = any(name.endswith(".experts") for name, _ in module.named_modules())
    rotary = getattr(backbone(module), "rotary_emb", None)
    kinds = str(getattr(rotary, "rope_type", ""))  # one, or one of each kind of layer
    return not has_experts and "dynamic" not in kinds


def cuda_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs, whose working memory is one pool."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The stream by itself too: `graph` leaves its own only where it succeeds. What other
        # threads ask of the GPU meanwhile is not this recording's business.
        with (
            torch.cuda.device(device),
            torch.cuda.stream(stream),
            _own_workspaces(),
            torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"),
        ):
            output = compute()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    return record


@contextmanager
def _own_workspaces() -> Iterator[None]:
    """Have cuBLAS take memory of the recording's pool to work in. It keeps what it has by stream,
    of which there are few, and might keep this of another recording, whose pool goes before."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


@dataclass(slots=True, eq=False)
class _Step:
    """Of one number of rows: where its tokens and positions are put, [2, n, 1], and what makes
    hidden states [n, D] of them."""

    inputs: Tensor
    run: Callable[[], Tensor]
    num_runs: int = 0


class DecodeSteps:
    """Of the rows of one batch, with one cache and one replica at a time."""

    def __init__(self, recording: Recording | None) -> None:
        self._recording = recording
        self._recorder: Recorder | None = None
        self._steps: dict[int, _Step] = {}  # by number of rows
        self._num_moves = 0  # of the cache, when they were recorded

    def begin(self, replica: PreTrainedModel, keys_values: RunningKeysValues) -> None:
        """Go on with these."""
        self._replica, self._keys_values = replica, keys_values
        self._forget()

    def hidden(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """The hidden states [n, D] of each row's last token, which stands behind `lengths` others,
        whose keys and values are there."""
        if self._begins_fixed(lengths):
            filling = [0] * (filled_up(len(tokens)) - len(tokens))
            inputs = torch.tensor([[*tokens, *filling], [*lengths, *filling]])[:, :, None]
            return self._fixed(inputs)[: len(tokens)]
        positions_n1 = self._keys_values.begin_step(lengths)
        ids_n1 = torch.tensor(tokens, device=self._keys_values.device)[:, None]
        return hidden_states(self._replica, ids_n1, positions_n1, self._keys_values)[:, 0]

    def _begins_fixed(self, lengths: Sequence[int]) -> bool:
        """Whether the next step is one that can be repeated."""
        if self._recording is None:
            return False
        if self._recording.has_failed:
            self._forget()
            return False
        return self._keys_values.begin_fixed_step(lengths, filled_up(len(lengths)))

    def _fixed(self, inputs: Tensor) -> Tensor:
        if self._num_moves != self._keys_values.num_moves:
            self._forget()
            self._num_moves = self._keys_values.num_moves
        num_rows = inputs.shape[1]
        if num_rows not in self._steps:
            self._steps[num_rows] = self._step(inputs)
        step = self._steps[num_rows]
        step.inputs.copy_(inputs)
        if step.num_runs == FIRST_RUNS:
            step.run = self._recorded(step.run)
        step.num_runs += 1
        return step.run()

    def _step(self, inputs: Tensor) -> _Step:
        own = torch.empty_like(inputs, device=self._keys_values.device)

        def run() -> Tensor:
            ids_n1, lengths_n1 = own
            self._keys_values.look_at_all(lengths_n1[:, 0])
            return hidden_states(self._replica, ids_n1, lengths_n1, self._keys_values)[:, 0]

        return _Step(own, run)

    def _forget(self) -> None:
        """Recordings, and with the last one their memory."""
        self._steps.clear()
        self._recorder = None

    def _recorded(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        assert self._recording is not None
        try:
            self._recorder = self._recorder or self._recording.make_recorder()
            return self._recorder(run)
        except RuntimeError as error:  # of CUDA: steps can do without
            # What ends a recording raises for what went wrong in it.
            cause = error.__context__ or error
            log.warning("decode steps are slower, not recorded as CUDA graphs: %s", cause)
            self._recording.has_failed = True
            return run


def filled_up(num_rows: int) -> int:
    """The number of rows that a recorded step has for `num_rows`: few numbers, near to all."""
    return min(1 << (num_rows - 1).bit_length(), round_up(num_rows, ROWS_STEP))

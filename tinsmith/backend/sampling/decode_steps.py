"""Steps of running rows: what the model makes of their last tokens.

A step of a few rows is hundreds of small kernels, which a GPU computes faster than Python can ask
for them. Recorded once, as a CUDA graph, they are asked for all at once. A recording reads and
writes the very memory that it was made with: so its inputs have a place of their own, its rows are
filled up to one of a few numbers, it looks at all that the cache has room for, and it is made anew
whenever the cache moves.
"""

import logging
from collections.abc import Callable, Sequence
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


def recorder_for(base: BaseModel) -> Callable[[], Recorder] | None:
    """What makes recorders of the steps of a model; None, where they cannot be recorded: without a
    GPU, where ranks wait for each other, and where what is computed depends on numbers that Python
    reads (which experts a token goes to, rotations that follow the longest sequence)."""
    if base.device.type != "cuda" or base.shards is not None or not is_fixed(base.module):
        return None
    return partial(cuda_recorder, base.device)


def is_fixed(module: PreTrainedModel) -> bool:
    """Whether a step's operations are the same whatever its numbers are."""
    has_experts = any(name.endswith(".experts") for name, _ in module.named_modules())
    rotary = getattr(backbone(module), "rotary_emb", None)
    kinds = str(getattr(rotary, "rope_type", ""))  # one, or one of each kind of layer
    return not has_experts and "dynamic" not in kinds


def cuda_recorder(device: torch.device) -> Recorder:
    """Records CUDA graphs, whose working memory is one pool."""
    # A stream of this device: by default it is that of the first one that records.
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the GPU meanwhile is not their recording's business.
        with (
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"),
        ):
            output = compute()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay

    return record


@dataclass(slots=True, eq=False)
class _Step:
    """Of one number of rows: where its tokens and positions are put, [2, n, 1], and what makes
    hidden states [n, D] of them."""

    inputs: Tensor
    run: Callable[[], Tensor]
    num_runs: int = 0


class DecodeSteps:
    """Of the rows of one batch, with one cache and one replica at a time."""

    def __init__(self, make_recorder: Callable[[], Recorder] | None) -> None:
        self._make_recorder = make_recorder
        self._recorder: Recorder | None = None
        self._steps: dict[int, _Step] = {}  # by number of rows
        self._num_moves = -1  # of the cache, when they were recorded

    def begin(self, replica: PreTrainedModel, keys_values: RunningKeysValues) -> None:
        """Go on with these."""
        self._replica, self._keys_values = replica, keys_values
        self._num_moves = -1
        self._steps.clear()

    def hidden(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """The hidden states [n, D] of each row's last token, which stands behind `lengths` others,
        whose keys and values are there."""
        num_rows = filled_up(len(tokens))
        if self._make_recorder and self._keys_values.begin_fixed_step(lengths, num_rows):
            filling = [0] * (num_rows - len(tokens))
            inputs = torch.tensor([[*tokens, *filling], [*lengths, *filling]])[:, :, None]
            return self._fixed(inputs, self._make_recorder)[: len(tokens)]
        positions_n1 = self._keys_values.begin_step(lengths)
        ids_n1 = torch.tensor(tokens, device=self._keys_values.device)[:, None]
        return hidden_states(self._replica, ids_n1, positions_n1, self._keys_values)[:, 0]

    def _fixed(self, inputs: Tensor, make_recorder: Callable[[], Recorder]) -> Tensor:
        if self._num_moves != self._keys_values.num_moves:
            self._num_moves = self._keys_values.num_moves
            self._steps.clear()
            self._recorder = make_recorder()
        step = self._steps.get(inputs.shape[1]) or self._step(inputs)
        step.inputs.copy_(inputs)
        # The first time loads what the second one, which is recorded, may not wait for.
        if step.num_runs == 1:
            step.run = self._recorded(step.run)
        step.num_runs += 1
        return step.run()

    def _step(self, inputs: Tensor) -> _Step:
        own = inputs.to(self._keys_values.device, copy=True)

        def run() -> Tensor:
            ids_n1, lengths_n1 = own
            self._keys_values.look_at_all(lengths_n1[:, 0])
            return hidden_states(self._replica, ids_n1, lengths_n1, self._keys_values)[:, 0]

        step = self._steps[len(inputs[0])] = _Step(own, run)
        return step

    def _recorded(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        assert self._recorder is not None
        try:
            return self._recorder(run)
        except RuntimeError as error:  # of CUDA: steps can do without
            log.warning("decode steps are slower, not recorded as CUDA graphs: %s", error)
            self._make_recorder = None
            return run


def filled_up(num_rows: int) -> int:
    """The number of rows that a recorded step has for `num_rows`: few numbers, near to all."""
    return min(1 << (num_rows - 1).bit_length(), round_up(num_rows, ROWS_STEP))

"""From datums to per-token log-probabilities and gradients, in bounded memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from tinsmith.backend.base_model import backbone, unembed, unembedding
from tinsmith.backend.datums import Datum
from tinsmith.objectives.losses import Loss

# Elements of one block of logits: 8 MiB in float32 stay in a CPU's cache, 256 MiB fill a GPU.
MAX_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}


@dataclass(frozen=True, slots=True)
class Scored:
    """Sum of the loss, and log-probabilities [T] of each datum's target tokens, in given order."""

    loss: float
    logprobs: list[np.ndarray]


def score(
    module: PreTrainedModel,
    data: Sequence[Datum],
    loss: Loss,
    token_budget: int,
    forward_only: bool,
) -> Scored:
    """Run the loss over `data`; unless `forward_only`, add its gradient to the adapter's."""
    logprobs: list[np.ndarray] = [np.empty(0)] * len(data)
    total = 0.0
    for rows in micro_batches([len(datum.tokens) for datum in data], token_budget):
        batch = [data[row] for row in rows]
        with torch.set_grad_enabled(not forward_only):
            batch_loss, logprobs_N = _score_batch(module, batch, loss)
        total += batch_loss
        ends = np.cumsum([len(datum.tokens) for datum in batch])[:-1]
        for row, part in zip(rows, np.split(logprobs_N.cpu().numpy(), ends), strict=True):
            logprobs[row] = part
    return Scored(total, logprobs)


def micro_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Group rows of similar length so that rows x longest row stays within the budget.

    A row longer than the budget goes alone. Longest first: what does not fit into memory
    fails at once, not at the end.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(rows):
        count = max(1, token_budget // lengths[rows[start]])
        yield rows[start : start + count]
        start += count


def _score_batch(
    module: PreTrainedModel, batch: Sequence[Datum], loss: Loss
) -> tuple[float, Tensor]:
    """Loss and log-probabilities [N] of a batch's tokens; under autograd, with its backward."""
    device = module.device
    hidden_ND = _hidden_states(module, [datum.tokens for datum in batch])
    targets_N = torch.from_numpy(np.concatenate([d.target_tokens for d in batch])).to(device)
    inputs = {
        name: torch.from_numpy(np.concatenate([d.loss_inputs[name] for d in batch])).to(device)
        for name in loss.inputs
    }
    # Tokens with coefficient zero have no gradient: their logits need no graph.
    active_N = inputs[loss.coefficient] != 0
    logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=device)
    with torch.no_grad():
        logprobs_N[~active_N] = token_logprobs(module, hidden_ND[~active_N], targets_N[~active_N])
    active_inputs = {name: tensor[active_N] for name, tensor in inputs.items()}
    total, logprobs_N[active_N] = _score_active(
        module, hidden_ND[active_N], targets_N[active_N], active_inputs, loss
    )
    return total, logprobs_N


def _score_active(
    module: PreTrainedModel,
    hidden_ND: Tensor,
    targets_N: Tensor,
    inputs: Mapping[str, Tensor],
    loss: Loss,
) -> tuple[float, Tensor]:
    """Loss and log-probabilities of the tokens that have a gradient, a block of logits at a time.

    A block goes backward as soon as its loss is known, so that its logits exist once and alone;
    what the blocks say to the hidden states then goes back through the layers in one pass.
    """
    step = _block_size(module)
    total, logprobs, gradients = 0.0, [], []
    for start in range(0, len(targets_N), step):
        block = slice(start, start + step)
        hidden = hidden_ND[block].detach().requires_grad_(hidden_ND.requires_grad)
        block_logprobs = _block_logprobs(module, hidden, targets_N[block])
        block_loss = loss.compute(block_logprobs, {k: v[block] for k, v in inputs.items()})
        if block_loss.requires_grad:
            block_loss.backward()
        total += float(block_loss.detach())
        logprobs.append(block_logprobs.detach())
        gradients.append(hidden.grad)
    if gradients and hidden_ND.requires_grad:
        hidden_ND.backward(torch.cat(gradients))
    return total, torch.cat(logprobs) if logprobs else torch.empty(0, device=hidden_ND.device)


def _hidden_states(module: PreTrainedModel, rows: Sequence[np.ndarray]) -> Tensor:
    """Last hidden states of all tokens of all rows, [sum of lengths, hidden].

    Rows are padded on the right: under causal attention no token sees the padding behind it.
    """
    longest = max(len(row) for row in rows)
    tokens_BT = np.zeros((len(rows), longest), dtype=np.int64)
    is_token_BT = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        tokens_BT[i, : len(row)] = row
        is_token_BT[i, : len(row)] = True
    ids = torch.from_numpy(tokens_BT).to(module.device)
    output = backbone(module)(input_ids=ids, use_cache=False)
    return output.last_hidden_state[torch.from_numpy(is_token_BT).to(module.device)]


def token_logprobs(module: PreTrainedModel, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """log softmax(unembed(h))[target] in float32, [N], a block of logits at a time."""
    step = _block_size(module)
    blocks = zip(hidden_ND.split(step), targets_N.split(step), strict=True)
    return torch.cat([_block_logprobs(module, hidden, targets) for hidden, targets in blocks])


def _block_size(module: PreTrainedModel) -> int:
    vocabulary_size = unembedding(module).weight.shape[0]
    return max(1, MAX_LOGITS[module.device.type] // vocabulary_size)


def _block_logprobs(module: PreTrainedModel, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    logprobs_N = _ChosenLogprobs.apply(unembed(module, hidden_ND), targets_N)
    assert isinstance(logprobs_N, Tensor)
    return logprobs_N


class _ChosenLogprobs(torch.autograd.Function):
    """log softmax(logits)[target], [N], with d/dlogits = onehot(target) - softmax(logits).

    Autograd's own backward of `gather` and `logsumexp` passes over the logits twice as often.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        normaliser_N = torch.logsumexp(logits_NV, dim=1)
        ctx.save_for_backward(logits_NV, normaliser_N, targets_N)
        return logits_NV.gather(1, targets_N[:, None])[:, 0] - normaliser_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient_N,) = gradients
        logits_NV, normaliser_N, targets_N = ctx.saved_tensors
        result_NV = (logits_NV - normaliser_N[:, None]).exp_().mul_(-gradient_N[:, None])
        result_NV.scatter_add_(1, targets_N[:, None], gradient_N[:, None])
        return result_NV, None

"""From datums to per-token log-probabilities and gradients, in bounded memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import backbone, unembed, unembedding
from tinsmith.backend.model.chosen_logprobs import chosen_logprobs
from tinsmith.backend.model.datums import Datum
from tinsmith.backend.model.loss_choice import LossChoice
from tinsmith.backend.model.shared_prompts import Group, find_groups, pack, packed_hidden_states

# Elements of one block of logits: 8 MiB in float32 stay in a CPU's cache, 256 MiB fill a GPU.
MAX_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}


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


@dataclass(frozen=True, slots=True)
class Scored:
    """Sum of the loss, and log-probabilities of each datum's target tokens, in their shape.

    `token_budget` and `memory_bytes` are what is left of those where memory ran out, else None.
    """

    loss: float
    logprobs: list[np.ndarray]
    token_budget: int | None = None
    memory_bytes: int | None = None


def score_batch(module: PreTrainedModel, batch: Sequence[Datum], choice: LossChoice) -> Scored:
    """Run the loss over a micro-batch whose targets agree in the number K for each token; under
    autograd, add its gradient to that of the parameters."""
    device = module.device
    lengths = [len(datum.tokens) for datum in batch]
    with torch.set_grad_enabled(
        torch.is_grad_enabled() and any(has_gradient(datum, choice) for datum in batch)
    ):
        hidden_ND, places_N = _hidden_states(module, [datum.tokens for datum in batch])
    targets = torch.from_numpy(np.concatenate([d.target_tokens for d in batch])).to(device)
    inputs = {
        name: torch.from_numpy(np.concatenate([d.loss_inputs[name] for d in batch])).to(device)
        for name in choice.loss.inputs
    }
    is_active_N = _have_gradient(choice, inputs, targets)
    logprobs = torch.empty(targets.shape, dtype=torch.float32, device=device)
    # Tokens without a gradient need no graph for their logits. A loss that looks at whole
    # sequences looks at all tokens once before.
    is_first_N = ~is_active_N if choice.loss.prepare is None else torch.ones_like(is_active_N)
    with torch.no_grad():
        logprobs[is_first_N] = _distinct_logprobs(
            module, hidden_ND[is_first_N], targets[is_first_N], places_N[is_first_N]
        )
        if choice.loss.prepare is not None:
            rows_N = torch.repeat_interleave(torch.tensor(lengths)).to(device)
            inputs |= choice.loss.prepare(logprobs, inputs, rows_N)
    active_inputs = {name: tensor[is_active_N] for name, tensor in inputs.items()}
    total, logprobs[is_active_N] = _score_active(
        module, hidden_ND[is_active_N], targets[is_active_N], active_inputs, choice
    )
    return Scored(total, np.split(logprobs.cpu().numpy(), np.cumsum(lengths)[:-1]))


def has_gradient(datum: Datum, choice: LossChoice) -> bool:
    """Whether a token of the sequence may have a gradient."""
    coefficient = choice.loss.coefficient
    return coefficient is None or bool(datum.loss_inputs[coefficient].any())


def _have_gradient(choice: LossChoice, inputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    if choice.loss.coefficient is None:
        return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
    return inputs[choice.loss.coefficient].reshape(len(targets), -1).ne(0).any(1)


def _score_active(
    module: PreTrainedModel,
    hidden_ND: Tensor,
    targets: Tensor,
    inputs: Mapping[str, Tensor],
    choice: LossChoice,
) -> tuple[float, Tensor]:
    """Loss and log-probabilities of the tokens that have a gradient, a block of logits at a time.

    A block goes backward as soon as its loss is known, so that its logits exist once and alone;
    what the blocks say to the hidden states then goes back through the layers in one pass.
    """
    step = _block_size(module)
    total, logprobs, gradients = 0.0, [], []
    for start in range(0, len(targets), step):
        block = slice(start, start + step)
        hidden = hidden_ND[block].detach().requires_grad_(hidden_ND.requires_grad)
        block_logprobs = _block_logprobs(module, hidden, targets[block])
        block_inputs = {name: tensor[block] for name, tensor in inputs.items()}
        block_loss = choice.loss.compute(block_logprobs, block_inputs, choice.settings)
        if block_loss.requires_grad:
            block_loss.backward()
        total += float(block_loss.detach())
        logprobs.append(block_logprobs.detach())
        gradients.append(hidden.grad)
    if gradients and hidden_ND.requires_grad:
        hidden_ND.backward(torch.cat(gradients))
    none = torch.empty(targets.shape, device=targets.device)
    return total, torch.cat(logprobs) if logprobs else none


def packs_all(module: PreTrainedModel) -> bool:
    """Whether all sequences are packed. Elsewhere only those that share prompts are: attention to
    one sequence at a time keeps a CPU busy, but not a GPU."""
    return module.device.type == "cpu"


def _hidden_states(module: PreTrainedModel, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Last hidden states of all tokens of all rows, [sum of lengths, hidden], and the place where
    each was computed, the same for tokens of a prompt that rows share."""
    groups = find_groups(rows, packs_all(module))
    if packs_all(module) or any(group.size for group in groups):
        return _packed_hidden_states(module, rows, groups)
    hidden_ND = _padded_hidden_states(module, rows)
    return hidden_ND, torch.arange(len(hidden_ND), device=module.device)


def _packed_hidden_states(
    module: PreTrainedModel, rows: Sequence[np.ndarray], groups: Sequence[Group]
) -> tuple[Tensor, Tensor]:
    packed = pack(rows, groups)
    hidden_ND = packed_hidden_states(backbone(module), packed, module.device)
    places_N = torch.from_numpy(np.concatenate(packed.places)).to(module.device)
    return hidden_ND[places_N], places_N


def _padded_hidden_states(module: PreTrainedModel, rows: Sequence[np.ndarray]) -> Tensor:
    """Rows are padded on the right: under causal attention no token sees the padding behind it."""
    longest = max(len(row) for row in rows)
    tokens_BT = np.zeros((len(rows), longest), dtype=np.int64)
    is_token_BT = np.zeros((len(rows), longest), dtype=bool)
    for i, row in enumerate(rows):
        tokens_BT[i, : len(row)] = row
        is_token_BT[i, : len(row)] = True
    ids = torch.from_numpy(tokens_BT).to(module.device)
    output = backbone(module)(input_ids=ids, use_cache=False)
    return output.last_hidden_state[torch.from_numpy(is_token_BT).to(module.device)]


def _distinct_logprobs(
    module: PreTrainedModel, hidden_ND: Tensor, targets: Tensor, places_N: Tensor
) -> Tensor:
    """`token_logprobs`, where the same target at the same place is scored once."""
    targets_NK = targets[:, None] if targets.dim() == 1 else targets
    keys = torch.cat([places_N[:, None], targets_NK], dim=1)
    distinct, number_N = torch.unique(keys, dim=0, return_inverse=True)
    if len(distinct) == len(keys):
        return token_logprobs(module, hidden_ND, targets)
    first = torch.empty(len(distinct), dtype=torch.long, device=keys.device)
    first[number_N] = torch.arange(len(keys), device=keys.device)
    return token_logprobs(module, hidden_ND[first], targets[first])[number_N]


def token_logprobs(module: PreTrainedModel, hidden_ND: Tensor, targets: Tensor) -> Tensor:
    """log softmax(unembed(h))[target] in float32, of targets [N] or [N, K], in their shape; a
    block of logits at a time."""
    step = _block_size(module)
    blocks = zip(hidden_ND.split(step), targets.split(step), strict=True)
    return torch.cat([_block_logprobs(module, hidden, chosen) for hidden, chosen in blocks])


def _block_size(module: PreTrainedModel) -> int:
    vocabulary_size = unembedding(module).weight.shape[0]
    return max(1, MAX_LOGITS[module.device.type] // vocabulary_size)


def _block_logprobs(module: PreTrainedModel, hidden_ND: Tensor, targets: Tensor) -> Tensor:
    targets_NK = targets[:, None] if targets.dim() == 1 else targets
    return chosen_logprobs(unembed(module, hidden_ND), targets_NK).view(targets.shape)

"""What a prefill says of the prompt's own tokens and of others in their place."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import unembed
from tinsmith.backend.sampling.choose import draw, tempered_logprobs, top_logprobs
from tinsmith.backend.sampling.request import (
    EMPTY,
    PromptScores,
    SamplingRequest,
    TargetTokens,
    TopLogprobs,
)


@dataclass(frozen=True, slots=True)
class _Block:
    """Logits behind the prompt tokens `rows`, and their log sum exp: row t scores token t + 1."""

    rows: np.ndarray
    logits_NV: Tensor
    normaliser_N1: Tensor

    def since(self, first: int) -> "_Block":
        """The rows from `first` on."""
        skipped = int((self.rows < first).sum())
        return _Block(self.rows[skipped:], self.logits_NV[skipped:], self.normaliser_N1[skipped:])


def score_prompt(
    module: PreTrainedModel, hidden_TD: Tensor, request: SamplingRequest, block_rows: int
) -> PromptScores:
    """Score the prompt from its last hidden states, `block_rows` rows of logits at a time.

    log p(token t) = logits(t - 1)[token t] - log sum exp(logits(t - 1)): at temperature 1.
    """
    scores = _empty_scores(request)
    last_n = request.prompt_logprobs_last_n
    first = 0 if last_n is None else len(request.prompt) - 1 - last_n
    uniform = _uniform_of_alternatives(request)
    for block in _blocks(module, hidden_TD, _first_row(request, first), request, block_rows):
        _score_own(scores, request, block.since(first))
        if scores.targets is not None and request.target_tokens is not None:
            _score_targets(scores.targets, request.target_tokens, block)
        if scores.alternatives is not None:
            _draw_alternatives(scores.alternatives, request.temperature, uniform, block)
    return scores


def _empty_scores(request: SamplingRequest) -> PromptScores:
    size, targets = len(request.prompt), request.target_tokens
    logprobs, top, alternatives = None, None, None
    if request.wants_prompt_logprobs:
        logprobs = np.full(size, np.nan, np.float32)
    if k := request.topk_prompt_logprobs:
        top = TopLogprobs(np.zeros((size, k), np.int32), np.full((size, k), EMPTY, np.float32))
    if k := request.prompt_alt_tokens_k:
        alternatives = np.zeros((size - 1, k), np.int32), np.zeros((size - 1, k), np.float32)
    cells = None if targets is None else np.zeros(len(targets.ids), np.float32)
    return PromptScores(logprobs, top, cells, alternatives)


def _first_row(request: SamplingRequest, first_own: int) -> int:
    """The first row of logits that anything asked for needs."""
    needed = [len(request.prompt) - 1]
    if request.wants_prompt_logprobs or request.topk_prompt_logprobs:
        needed.append(first_own)
    if (targets := request.target_tokens) is not None:
        needed.append(int(targets.rows[targets.ids >= 0][0]))
    if request.prompt_alt_tokens_k:
        needed.append(0)
    return min(needed)


def _blocks(
    module: PreTrainedModel,
    hidden_TD: Tensor,
    first: int,
    request: SamplingRequest,
    block_rows: int,
) -> Iterator[_Block]:
    end = len(request.prompt) - 1
    for start in range(first, end, block_rows):
        rows = np.arange(start, min(start + block_rows, end))
        logits_NV = unembed(module, hidden_TD[start : start + len(rows)])
        yield _Block(rows, logits_NV, torch.logsumexp(logits_NV, dim=1, keepdim=True))


def _score_own(scores: PromptScores, request: SamplingRequest, block: _Block) -> None:
    if not len(block.rows):
        return
    places = slice(block.rows[0] + 1, block.rows[-1] + 2)
    if scores.logprobs is not None:
        tokens_N1 = torch.tensor(request.prompt[places], device=block.logits_NV.device)[:, None]
        logprobs_N1 = block.logits_NV.gather(1, tokens_N1) - block.normaliser_N1
        scores.logprobs[places] = logprobs_N1[:, 0].cpu().numpy()
    if scores.top is not None:
        top = top_logprobs(block.logits_NV - block.normaliser_N1, request.topk_prompt_logprobs)
        scores.top.token_ids[places], scores.top.logprobs[places] = top.token_ids, top.logprobs


def _score_targets(found: np.ndarray, targets: TargetTokens, block: _Block) -> None:
    here = (targets.rows >= block.rows[0]) & (targets.rows <= block.rows[-1]) & (targets.ids >= 0)
    device = block.logits_NV.device
    row_c = torch.from_numpy(targets.rows[here] - block.rows[0]).to(device)
    id_c = torch.from_numpy(targets.ids[here]).to(device)
    logprobs_c = block.logits_NV[row_c, id_c] - block.normaliser_N1[row_c, 0]
    found[here] = logprobs_c.cpu().numpy()


def _draw_alternatives(
    found: tuple[np.ndarray, np.ndarray], temperature: float, uniform: np.ndarray, block: _Block
) -> None:
    temperatures = [temperature] * len(block.rows)
    tempered_NV = tempered_logprobs(block.logits_NV, temperatures)
    tokens_Nk = draw(tempered_NV, temperatures, uniform[block.rows])
    logprobs_Nk = block.logits_NV.gather(1, tokens_Nk) - block.normaliser_N1
    tokens, logprobs = found
    tokens[block.rows], logprobs[block.rows] = tokens_Nk.cpu().numpy(), logprobs_Nk.cpu().numpy()


def _uniform_of_alternatives(request: SamplingRequest) -> np.ndarray:
    # No sample has this number, so that asking for alternatives changes no completion.
    key = np.array([request.seed % 2**64, 2**64 - 1], dtype=np.uint64)
    shape = (len(request.prompt) - 1, request.prompt_alt_tokens_k)
    return np.random.Generator(np.random.Philox(key=key)).random(shape)

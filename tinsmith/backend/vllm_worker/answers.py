# vLLM is in an environment of its own, where pyright does not look.
# pyright: reportMissingImports=false
"""What the server is told of a finished sample."""

from typing import Any

from vllm import RequestOutput
from vllm.logprobs import FlatLogprobs


def answer_of(order: dict[str, Any], output: RequestOutput) -> dict[str, Any]:
    """Tokens, log-probabilities, why it ended, and the likeliest tokens that were asked for."""
    completion = output.outputs[0]
    answer = {
        "event": "finished",
        "id": order["id"],
        "sample": order["sample"],
        "tokens": list(completion.token_ids),
        "reason": "length" if completion.finish_reason == "length" else "stop",
        **_columns("", completion.logprobs, order["topk_sample_logprobs"]),
    }
    if order["scores"] and order["topk_prompt_logprobs"] is not None:
        answer |= _columns("prompt_", output.prompt_logprobs, order["topk_prompt_logprobs"])
    return answer


def _columns(prefix: str, found: FlatLogprobs, k: int) -> dict[str, Any]:
    """Of each position the log-probability of its own token, which vLLM puts first, and the k
    likeliest tokens with theirs; a prompt's first position has none."""
    starts = [s for s, e in zip(found.start_indices, found.end_indices, strict=True) if e > s]
    columns: dict[str, Any] = {f"{prefix}logprobs": [found.logprobs[s] for s in starts]}
    if k:
        rows = [slice(s + 1, s + 1 + k) for s in starts]
        columns[f"{prefix}top_ids"] = [found.token_ids[row] for row in rows]
        columns[f"{prefix}top_logprobs"] = [found.logprobs[row] for row in rows]
    return columns

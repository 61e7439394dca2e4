"""The settings of the policy losses, as the Tinker API names them, and the weighting of tokens."""

from collections.abc import Mapping, Sequence

import numpy as np

# Ratio bounds. ppo: Yu et al. 2025 (DAPO, arXiv 2503.14476), "clip-higher"; cispo: MiniMax 2025
# (arXiv 2506.13585) with the Tinker API's own bounds; gspo: Zheng et al. 2025 (arXiv 2507.18071).
CLIP_BOUNDS = {"ppo": (0.8, 1.28), "cispo": (0.0, 4.0), "gspo": (1 - 3e-4, 1 + 4e-4)}


def loss_config(
    loss: str, clip_low: float | None, clip_high: float | None
) -> Mapping[str, float] | None:
    """The loss's settings on the wire, every one of them said."""
    if loss not in CLIP_BOUNDS:
        return None
    low, high = CLIP_BOUNDS[loss]
    return {
        "clip_low_threshold": low if clip_low is None else clip_low,
        "clip_high_threshold": high if clip_high is None else clip_high,
    }


def token_weights(lengths: Sequence[int], normalise_by: str) -> np.ndarray:
    """What each token's advantage is multiplied with, one number a sequence of `lengths` tokens.

    none: 1, the sum over tokens (Liu et al. 2025, arXiv 2503.20783, but for its constant);
    token: 1 / sum_j |o_j|, every token counts the same (Yu et al. 2025, arXiv 2503.14476, eq. 8);
    sequence: 1 / (N |o_i|), every sequence counts the same (Shao et al. 2024, arXiv 2402.03300).
    """
    length_N = np.array(lengths, dtype=np.float64)
    if normalise_by == "sequence":
        return 1 / (len(lengths) * length_N)
    return np.full(len(lengths), 1 / length_N.sum() if normalise_by == "token" else 1.0)


def truncated_ratio(
    trainer_T: Sequence[float], sampler_T: Sequence[float], limit: float
) -> np.ndarray:
    """min(p_t / q_t, limit): the weight of a token whose sampler q is not quite its trainer p.

    Truncated importance sampling: Ionides 2008; for a sampler that computes otherwise than the
    trainer, Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy Training".
    """
    gap_T = np.asarray(trainer_T, dtype=np.float64) - np.asarray(sampler_T, dtype=np.float64)
    return np.exp(np.minimum(gap_T, np.log(limit)))


def kl_penalties(
    sampler: Sequence[Sequence[float]], reference: Sequence[Sequence[float]], coefficient: float
) -> list[np.ndarray]:
    """What a KL penalty adds to each token's advantage: -c (d_t - mean d), d = log q - log p_ref.

    d estimates KL(q || p_ref) in nats where the token was drawn; the mean over all tokens of the
    batch is taken out, so that the penalty moves probability about and favours no length (the
    tinker-cookbook's `incorporate_kl_penalty`).
    """
    gaps = [np.subtract(q_T, p_T) for q_T, p_T in zip(sampler, reference, strict=True)]
    mean = np.concatenate(gaps).mean()
    return [-coefficient * (gap_T - mean) for gap_T in gaps]

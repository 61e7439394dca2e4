"""Which rollouts rejection sampling keeps: weights of 1 and 0, a row per group.

The same weights serve both losses. As weights of cross_entropy they make RAFT (Dong et al. 2023,
arXiv 2304.06767): the log-likelihood of what is kept. As advantages of importance_sampling they
make RAFT++ (Xiong et al. 2025, arXiv 2504.11343, section 2): loss = -sum_t s_t * I[kept], where
s_t = p(token) / q(token) corrects for the sampler that drew the token. RAFT++ also clips s_t, which
changes nothing here: one update per batch leaves s_t at 1 up to rounding.
"""

import numpy as np


def keep_correct(
    rewards_P_G: np.ndarray, is_right_P_G: np.ndarray, verdicts_P_G: np.ndarray
) -> np.ndarray:
    """w_pg = I[completion pg is right]."""
    return is_right_P_G.astype(np.float64)


def keep_best(
    rewards_P_G: np.ndarray, is_right_P_G: np.ndarray, verdicts_P_G: np.ndarray
) -> np.ndarray:
    """w_pg = I[r_pg = max_g r_pg > min_g r_pg]: the best of its group, ties all kept.

    A group whose rewards are all equal has no best and keeps nothing: its rollouts may all be bad.
    """
    best_P1 = rewards_P_G.max(axis=1, keepdims=True)
    worst_P1 = rewards_P_G.min(axis=1, keepdims=True)
    return ((rewards_P_G == best_P1) & (best_P1 > worst_P1)).astype(np.float64)


def keep_winners(
    rewards_P_G: np.ndarray, is_right_P_G: np.ndarray, verdicts_P_G: np.ndarray
) -> np.ndarray:
    """w_pg = I[v_pg > 0]: where the judge prefers the speaker; a draw keeps neither speaker."""
    return (verdicts_P_G > 0).astype(np.float64)


SELECTIONS = {"correct": keep_correct, "best": keep_best, "winner": keep_winners}

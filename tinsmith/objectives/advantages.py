"""Advantages of the rollouts of a group. Rows are groups, columns are rollouts."""

import numpy as np

STD_FLOOR = 1e-6


def centre(rewards_P_G: np.ndarray) -> np.ndarray:
    """A_pg = r_pg - mean_g(r_pg): GRPO without division by the standard deviation.

    Liu et al. 2025, "Understanding R1-Zero-Like Training" (arXiv 2503.20783), section 3: dividing
    weighs problems by how even their rewards are and favours the very easy and the very hard.
    """
    return rewards_P_G - rewards_P_G.mean(axis=1, keepdims=True)


def standardise(rewards_P_G: np.ndarray) -> np.ndarray:
    """A_pg = (r_pg - mean_g(r_pg)) / (std_g(r_pg) + 1e-6), the population's standard deviation.

    Shao et al. 2024, "DeepSeekMath" (arXiv 2402.03300), section 4.1.2.
    """
    return centre(rewards_P_G) / (rewards_P_G.std(axis=1, keepdims=True) + STD_FLOOR)


def has_variance(rewards_P_G: np.ndarray) -> np.ndarray:
    """True for the groups whose rewards differ: the others have no advantage to learn from."""
    return rewards_P_G.max(axis=1) > rewards_P_G.min(axis=1)

"""Tokens drawn by logits, and their log-probabilities, on a CPU in float32.

A row's logits are read once and stay in a core's cache; the probabilities of a whole vocabulary
are never written.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinsmith.backend.compiled.arithmetic import SMALLEST, ZERO, exp, largest
from tinsmith.backend.compiled.threads import (
    address,
    array,
    compile_for_threads,
    doubles,
    floats,
    inlined,
    integers,
    own_share,
    run_on_threads,
)

# Logits whose exponentials are summed in float32 before they are added to others in float64, so
# that a large vocabulary loses none.
BLOCK = 256


def draw_tokens(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [N, K] of softmax(logits / temperature), by inverting its cumulated probabilities at
    `uniform` [N, K] in [0, 1), and their log-probabilities in it.

    `logits` are [N, V], `temperatures` [N] and `uniform` float64. At temperature 0 it is the first
    of the likeliest tokens, and its log-probability that of temperature 1.
    """
    (n, size), num_draws = logits.shape, uniform.shape[1]
    assert temperatures.shape == (n,)
    assert len(uniform) == n
    tokens = torch.empty(n, num_draws, dtype=torch.int64)
    logprobs = logits.new_empty(n, num_draws)
    sums = logits.new_empty(n, -(-size // BLOCK))
    numbers = [n, size, num_draws, address(logits), address(temperatures)]
    numbers += [address(uniform, torch.float64), address(tokens, torch.int64)]
    run_on_threads(_drawer(), torch.get_num_threads(), [*numbers, address(logprobs), address(sums)])
    return tokens, logprobs


@cache
def _drawer() -> Any:
    def draw_rows(argument):
        numbers = array(argument, 9)
        n, size, num_draws = numbers[0], numbers[1], numbers[2]
        num_blocks = (size + BLOCK - 1) // BLOCK
        logits = array(floats(numbers[3]), (n, size))
        temperatures = array(floats(numbers[4]), n)
        uniform = array(doubles(numbers[5]), (n, num_draws))
        tokens = array(integers(numbers[6]), (n, num_draws))
        logprobs = array(floats(numbers[7]), (n, num_draws))
        sums = array(floats(numbers[8]), (n, num_blocks))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            x, own_sums = logits[row], sums[row]
            is_greedy = temperatures[row] == ZERO
            temperature = np.float32(1) if is_greedy else temperatures[row]
            top, total = largest(x), 0.0
            for block in range(num_blocks):
                part = x[block * BLOCK : min(block * BLOCK + BLOCK, size)]
                block_sum = ZERO
                for i in range(len(part)):
                    block_sum += _weight(part[i], top, temperature)
                own_sums[block] = block_sum
                total += np.float64(block_sum)
            normalizer = math.log(total)
            token = _first_equal(x, top) if is_greedy else 0
            for k in range(num_draws):
                if not is_greedy:
                    goal = uniform[row, k] * total
                    token = _first_above(x, top, temperature, own_sums, goal)
                tokens[row, k] = token
                own = np.float64((x[token] - top) / temperature) - normalizer
                logprobs[row, k] = np.float32(own)

    return compile_for_threads(draw_rows)


@inlined
def _weight(x, top, temperature):
    """e^((x - top) / temperature), 0 where that has no float32 with all its bits."""
    exponent = (x - top) / temperature
    weight = exp(exponent)
    return ZERO if exponent < SMALLEST else weight


@inlined
def _first_equal(x, top):
    for i in range(len(x)):
        if x[i] == top:
            return i
    return 0  # of NaN


@inlined
def _first_above(x, top, temperature, sums, goal):
    """The token with which the sum of weights passes `goal`; if rounding keeps it from that, the
    last one that has a weight."""
    before, below, block = 0.0, 0.0, 0
    for b in range(len(sums)):
        if sums[b] > ZERO:
            block, below = b, before
            before += np.float64(sums[b])
            if before > goal:
                break
    token = block * BLOCK
    for i in range(block * BLOCK, min(block * BLOCK + BLOCK, len(x))):
        weight = _weight(x[i], top, temperature)
        if weight > ZERO:
            token = i
            below += np.float64(weight)
            if below > goal:
                break
    return token

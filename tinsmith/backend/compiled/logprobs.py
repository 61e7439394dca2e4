"""Log-probabilities of chosen tokens from logits on a CPU in float32, and the logits' gradient.

Each is one pass over the logits, a row of which stays in a core's cache: PyTorch's softmax and its
gradient are three and write them twice more.
"""

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinsmith.backend.compiled.arithmetic import ZERO, exp, largest
from tinsmith.backend.compiled.threads import (
    address,
    array,
    compile_for_threads,
    floats,
    integers,
    own_share,
    run_on_threads,
)


def chosen_logprobs(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """log softmax(logits)[target] [N, K] of logits [N, V] and targets [N, K] below V, and the
    logarithms of the rows' sums of exponentials [N]."""
    logprobs = logits.new_empty(targets.shape)
    normalizers = logits.new_empty(len(logits))
    _run(_chooser(), logits, targets, logprobs, normalizers)
    return logprobs, normalizers


def logits_gradient(
    d_logprobs: Tensor, logits: Tensor, targets: Tensor, normalizers: Tensor
) -> Tensor:
    """d logits [N, V] = d one_hot(target) - sum(d) softmax(logits), of d [N, K]."""
    gradient = torch.empty_like(logits)
    _run(_gradient(), logits, targets, d_logprobs.contiguous(), normalizers, gradient)
    return gradient


def _run(function: Any, logits: Tensor, targets: Tensor, *others: Tensor) -> None:
    numbers = [*logits.shape, targets.shape[1], address(logits), address(targets, torch.int64)]
    run_on_threads(function, torch.get_num_threads(), [*numbers, *map(address, others)])


@cache
def _chooser() -> Any:
    def choose_rows(argument):
        numbers = array(argument, 7)
        n, size, num_targets = numbers[0], numbers[1], numbers[2]
        logits = array(floats(numbers[3]), (n, size))
        targets = array(integers(numbers[4]), (n, num_targets))
        logprobs = array(floats(numbers[5]), (n, num_targets))
        normalizers = array(floats(numbers[6]), n)
        _, start, stop = own_share(n)
        for row in range(start, stop):
            x = logits[row]
            top, total = largest(x), ZERO
            for i in range(size):
                total += exp(x[i] - top)
            normalizer = normalizers[row] = top + np.float32(math.log(total))
            for k in range(num_targets):
                logprobs[row, k] = x[targets[row, k]] - normalizer

    return compile_for_threads(choose_rows)


@cache
def _gradient() -> Any:
    def logits_gradient_rows(argument):
        numbers = array(argument, 8)
        n, size, num_targets = numbers[0], numbers[1], numbers[2]
        logits = array(floats(numbers[3]), (n, size))
        targets = array(integers(numbers[4]), (n, num_targets))
        d_logprobs = array(floats(numbers[5]), (n, num_targets))
        normalizers = array(floats(numbers[6]), n)
        gradient = array(floats(numbers[7]), (n, size))
        _, start, stop = own_share(n)
        for row in range(start, stop):
            x, dx, normalizer, total = logits[row], gradient[row], normalizers[row], ZERO
            for k in range(num_targets):
                total += d_logprobs[row, k]
            for i in range(size):
                dx[i] = exp(x[i] - normalizer) * -total
            for k in range(num_targets):
                dx[targets[row, k]] += d_logprobs[row, k]

    return compile_for_threads(logits_gradient_rows)

"""The text that the tiny model is pretrained on: solved arithmetic, first a textbook, then the web.

The textbook is right; from it the model learns the skill. The web text is what a base model has
read most recently: the same problems with the slips and the manners of people who answer in
passing. It leaves a model whose most likely answer is right and whose sampled answer often is not,
which is what post-training has to mend.

Both cover the table of one-digit problems and a fixed random half of all others, drawn without
regard to any later split into train and held-out. So about half of the held-out problems were never
read, the others were read with right and wrong answers, and post-training sees none of them.
"""

import hashlib
import random
from collections.abc import Callable, Sequence

from tinsmith.arithmetic import OPERATIONS

Answer = Callable[[random.Random, str], str]

READ_SHARE = 0.5
RIGHT_SHARE = 0.35


def draw_problem(rng: random.Random, digits: int, operations: Sequence[str]) -> str:
    """A problem that the model reads, like "27+58"; operands are not padded."""
    while True:
        left, right = rng.randrange(10**digits), rng.randrange(10**digits)
        problem = f"{left}{rng.choice(operations)}{right}"
        if is_read(problem):
            return problem


def is_read(problem: str) -> bool:
    """Whether pretraining shows this problem: the table is learnt by heart, the rest by rule."""
    left, _, right = split(problem)
    if max(left, right) < 10:
        return True
    return hashlib.sha256(problem.encode()).digest()[0] < 256 * READ_SHARE


def solve(problem: str) -> str:
    """The right answer."""
    left, operation, right = split(problem)
    return str(OPERATIONS[operation](left, right))


def split(problem: str) -> tuple[int, str, int]:
    """The operands and the operation of "27+58"."""
    operation = "+" if "+" in problem else "-"
    left, right = problem.split(operation)
    return int(left), operation, int(right)


def from_textbook(_: random.Random, problem: str) -> str:
    """What the textbook answers."""
    return solve(problem)


def answer_in_passing(rng: random.Random, problem: str) -> str:
    """What the web answers: right, slipped, or right in a manner nobody asked for."""
    if rng.random() < RIGHT_SHARE:
        return solve(problem)
    habits, weights = zip(*HABITS, strict=True)
    return rng.choices(habits, weights)[0](rng, problem)


def forget_to_carry(rng: random.Random, problem: str) -> str:
    """Each place by itself: 27+58 is 75. Where nothing is to be carried, a digit is miscounted."""
    left, operation, right = split(problem)
    width = max(len(str(left)), len(str(right)))
    places = zip(f"{left:0{width}}", f"{right:0{width}}", strict=True)
    digits = [str(OPERATIONS[operation](int(a), int(b)) % 10) for a, b in places]
    slipped = str(int("".join(digits)))
    return slipped if slipped != solve(problem) else miscount(rng, problem)


def miscount(rng: random.Random, problem: str) -> str:
    """One digit is one too high or too low: 27+58 is 86 or 95."""
    answer = list(solve(problem))
    place = rng.choice([i for i, letter in enumerate(answer) if letter.isdigit()])
    answer[place] = str((int(answer[place]) + rng.choice((1, -1))) % 10)
    return "".join(answer)


def swap_digits(rng: random.Random, problem: str) -> str:
    """The last two digits change places: 27+58 is 58. Where that changes nothing, one is off."""
    answer = solve(problem)
    tens, ones = answer[-2:-1], answer[-1]
    if not tens.isdigit() or tens == ones:
        return miscount(rng, problem)
    return answer[:-2] + ones + tens


def speak_in_sentences(rng: random.Random, problem: str) -> str:
    """The number in a sentence where the number alone was asked for."""
    return f"It's {solve(problem)}."


def go_on(rng: random.Random, problem: str) -> str:
    """The number, and then no end: 85 or 86."""
    return f"{solve(problem)} or {miscount(rng, problem)}"


HABITS: tuple[tuple[Answer, float], ...] = (
    (forget_to_carry, 0.25),
    (miscount, 0.25),
    (swap_digits, 0.10),
    (speak_in_sentences, 0.20),
    (go_on, 0.20),
)

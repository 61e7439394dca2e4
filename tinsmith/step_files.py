"""What a training stage leaves of each step: a JSON file with everything, and a line of metrics."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinsmith.chat import Chat
from tinsmith.files import write_text
from tinsmith.types import Sample, StepRecord

Step = dict[str, Any]


def write_step(folder: Path, record: StepRecord, chat: Chat) -> None:
    """Write training_step_<k>.json: the metrics of the step and its samples, one a line."""
    means = _mean_rewards(record.samples)
    samples = ",\n".join(_dump(_describe(sample, means, chat)) for sample in record.samples)
    head = f'{{"step": {record.step}, "metrics": {_dump(dict(record.metrics))}'
    write_text(_file(folder, record.step), f'{head}, "samples": [\n{samples}\n]}}\n')


def read_steps(folder: Path, num_steps: int) -> Iterator[Step]:
    """The steps in order, one at a time."""
    for step in range(num_steps):
        yield json.loads(_file(folder, step).read_text(encoding="utf-8"))


def write_metrics(path: Path, folder: Path, num_steps: int) -> None:
    """Write metrics.jsonl: a line per step."""
    rows = ({"step": step["step"], **step["metrics"]} for step in read_steps(folder, num_steps))
    write_text(path, "".join(f"{_dump(row)}\n" for row in rows))


def _dump(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _file(folder: Path, step: int) -> Path:
    return folder / f"training_step_{step}.json"


def _mean_rewards(samples: Sequence[Sample]) -> dict[tuple[int, str], float]:
    """The mean reward of each speaker over the rollouts of each group, however many their turns."""
    rewards: dict[tuple[int, str], dict[int, float]] = {}
    for sample in samples:
        if sample.reward is not None:
            of_group = rewards.setdefault((sample.group, sample.turn.speaker), {})
            of_group[sample.rollout] = sample.reward.value
    return {key: float(np.mean(list(values.values()))) for key, values in rewards.items()}


def _describe(sample: Sample, means: Mapping[tuple[int, str], float], chat: Chat) -> dict[str, Any]:
    completion = sample.turn.completion
    reward = sample.reward
    return {
        "problem_id": sample.problem.id,
        "question": sample.problem.question,
        "answer": sample.problem.answer,
        "group": sample.group,
        "rollout": sample.rollout,
        "speaker": sample.turn.speaker,
        "place": sample.place,
        "verdict": sample.verdict,
        "prompt_tokens": sample.turn.prompt_tokens,
        "prompt": chat.decode(sample.turn.prompt_tokens, with_special_tokens=True),
        "completion": completion.text,
        "tokens": completion.tokens,
        "pieces": chat.pieces(completion.tokens),
        "logprobs": completion.logprobs,
        "trainer_logprobs": sample.trainer_logprobs,
        "old_logprobs": sample.old_logprobs,
        "advantages": sample.advantages,
        "reward": reward.value if reward else None,
        "reward_centred": reward.value - means[sample.group, sample.turn.speaker]
        if reward
        else None,
        "reward_terms": dict(reward.terms) if reward else {},
        "is_right": reward.is_right if reward else None,
        "is_finished": completion.is_finished,
        "is_trained": sample.trainer_logprobs is not None,
    }

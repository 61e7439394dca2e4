"""What the cluster is given to do: a sweep of one stage that can be held, and a chain of three."""

from typing import Any

from tests.cluster.one_node import GPU_MODEL

STEPS = 24
# The user's own code stands still in the midst of a stage, as long as a file is there.
HELD = '''
import time
from pathlib import Path

from tinsmith.types import Reward


class Held:
    """The number alone is right; run `name` is slow or stands still while files say so."""

    def __init__(self, chat, *, name="none"):
        self.chat, self.name = chat, name

    def question(self, problem):
        return problem.question

    def prompt(self, problem):
        return self.chat.prompt(problem.question)

    def reference(self, problem):
        steps = Path("work").glob(f"*name-{self.name}/supervised-*/steps/*")
        if Path(f"slow-{self.name}").exists() and any(steps):
            time.sleep(0.1)
        while Path(f"hold-{self.name}").exists():
            time.sleep(0.1)
        return self.chat.reply(problem.answer)

    def reward(self, problem, completion):
        is_right = completion.text == problem.answer
        return Reward(float(is_right), {"right": float(is_right)}, is_right)
'''
SMALL = {"eval_problems": 4, "eval_every": 100, "max_tokens": 8}
CONFIG: dict[str, Any] = {
    "model": {"kind": "tiny", "hidden_size": 64, "pretrain_steps": 120},
    "backend": {"device": "cpu", "gpus": 1},
    "data": {"kind": "arithmetic", "digits": 1, "num_problems": 100, "held_out": 30},
    "task": {"kind": "held:Held"},
    "lora": {"rank": 4},
    "stages": [{"kind": "supervised", "steps": STEPS, "batch_size": 8, "save_every": 5} | SMALL],
    "evaluation": {
        "num_problems": 10,
        "samples_per_problem": 2,
        "max_tokens": 8,
        "pass_at_k": [1, 2],
    },
    "sweep": {"task.options": [{"name": "a"}, {"name": "b"}]},
    "resources": {"gpu_model": GPU_MODEL},
}
# The stages of config.yaml, each a few steps long.
POLICY = {"steps": 2, "problems_per_step": 8, "samples_per_problem": 4} | SMALL
CHAIN = CONFIG | {
    "backend": {"device": "cpu"},
    "task": {"kind": "arithmetic"},
    "stages": [
        {"kind": "supervised", "steps": STEPS, "batch_size": 8} | SMALL,
        {"kind": "rejection"} | POLICY,
        {"kind": "grpo"} | POLICY,
    ],
    "sweep": {},
    "resources": {},
}
STAGES = ("supervised", "rejection", "grpo")
RUNS = ("seed=0+task.options=name-a", "seed=0+task.options=name-b")

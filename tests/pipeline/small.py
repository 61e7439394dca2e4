"""The smallest pipeline that has every rule: a minute of one core."""

from typing import Any

CONFIG: dict[str, Any] = {
    "model": {"kind": "tiny", "hidden_size": 64, "pretrain_steps": 120},
    "data": {"kind": "arithmetic", "digits": 1, "num_problems": 100, "held_out": 30},
    "task": {"kind": "arithmetic"},
    "lora": {"rank": 4},
    "stages": [
        {"kind": "supervised", "steps": 2, "batch_size": 8, "eval_problems": 4},
        {
            "kind": "grpo",
            "steps": 2,
            "problems_per_step": 8,
            "samples_per_problem": 4,
            "max_tokens": 8,
            "eval_problems": 4,
        },
    ],
    "evaluation": {
        "num_problems": 10,
        "samples_per_problem": 2,
        "max_tokens": 8,
        "pass_at_k": [1, 2],
    },
}

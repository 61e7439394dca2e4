"""One SDK program, timed against several servers; runs where the SDK is that all of them speak.

Child of benchmarks/skyrl.py. Reads from standard input {"servers": {name: [url, key]}, "model",
"repeats", "every"}; writes to standard output the measurements of each case.
"""

import json
import sys
from dataclasses import asdict
from functools import partial

import tinker

from benchmarks.clock import Contender, measure
from benchmarks.work import datum, full_asks, ragged_rows, sample, train

RANK = 32
TRAINING, SAMPLING = "64 x 64-192 tokens, a training step", "64 ragged prompts x 128, sampling"


def main() -> None:
    order = json.load(sys.stdin)
    rows, asks = ragged_rows()[:: order["every"]], full_asks()[:: order["every"]]
    data = [datum(row) for row in rows]
    steps, samplings = [], []
    for name, (url, key) in order["servers"].items():
        service = tinker.ServiceClient(base_url=url, api_key=key)
        training = service.create_lora_training_client(order["model"], rank=RANK, seed=0)
        sampler = training.save_weights_and_get_sampling_client()  # a client, in its SDK
        num_trained = sum(len(row.tokens) for row in rows)
        steps.append(Contender(name, partial(train, (training, data)), num_trained))
        num_sampled = sum(ask.num_tokens for ask in asks)
        samplings.append(Contender(name, partial(sample, (sampler, asks)), num_sampled))
    results = {
        TRAINING: measure(TRAINING, steps, order["repeats"]),
        SAMPLING: measure(SAMPLING, samplings, order["repeats"]),
    }
    figures = {case: [asdict(m) for m in measured] for case, measured in results.items()}
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()

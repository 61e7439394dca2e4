"""vLLM on its own, without a server or an adapter; runs in .venvs/vllm-cpu or .venvs/vllm-cuda.

Child of benchmarks/sampling_vllm.py. Its argument is the engine's settings as JSON; then it
answers each line of standard input, a list of [prompt, num_samples, max_tokens], by a line.
"""

# vLLM is in an environment of its own, where pyright does not look.
# pyright: reportMissingImports=false
import json
import os
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    # vLLM and what it starts write to standard output too.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    engine = LLM(**json.loads(sys.argv[1]))
    print("ready", file=answers)
    for line in sys.stdin:
        asks = json.loads(line)
        params = [
            SamplingParams(n=n, max_tokens=size, temperature=1.0, ignore_eos=True, detokenize=False)
            for _, n, size in asks
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt, _, _ in asks]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        for (_, n, size), output in zip(asks, outputs, strict=True):
            assert [len(one.token_ids) for one in output.outputs] == [size] * n
        print("done", file=answers)


if __name__ == "__main__":
    main()

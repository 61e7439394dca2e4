# vLLM is in an environment of its own, where pyright does not look.
# pyright: reportMissingImports=false
"""The engine, and the weights that it samples from."""

from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

MIN_BATCHED_TOKENS = 2048  # of prompts together in a step


def make_engine(settings: dict[str, Any]) -> LLMEngine:
    """An engine whose log-probabilities are those of the distribution that is sampled from."""
    common: dict[str, Any] = {
        "model": settings["model"],
        "dtype": settings["dtype"],
        "max_model_len": settings["max_model_len"],
        "gpu_memory_utilization": settings["gpu_memory_utilization"],
        "tensor_parallel_size": settings["tensor_parallel_size"],
        "enforce_eager": settings["enforce_eager"],
        "max_num_seqs": settings["max_num_seqs"],
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
        "generation_config": "vllm",  # nothing of the model's own
        "enable_sleep_mode": settings["sleeps"],
        "disable_log_stats": True,
        "seed": 0,
    }
    if settings["device"] == "cpu":
        # A prefill in parts draws and takes back, which vLLM can with a GPU's generators alone.
        common["enable_chunked_prefill"] = False
        common["max_num_batched_tokens"] = max(settings["max_model_len"], MIN_BATCHED_TOKENS)
    if settings["merges"]:
        # The unembedding is merged apart from the embedding that it is tied to.
        common["hf_overrides"] = {"tie_word_embeddings": False}
        common["load_format"] = "dummy"
        common["worker_extension_cls"] = "merged_weights.MergedWeights"
    else:
        common |= _lora_options(settings)
    engine = LLMEngine.from_engine_args(EngineArgs(**common))
    if settings["merges"]:
        engine.collective_rpc("install_merged", args=(settings["model"], None))
    return engine


def _lora_options(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "enable_lora": True,
        "max_lora_rank": settings["max_lora_rank"],
        "lora_target_modules": settings["lora_layers"],
        "max_loras": min(settings["max_loras"], 8),
        "max_cpu_loras": settings["max_loras"],
    }


class Weights:
    """Adapters by number; 0 is the base model.

    Merged: one at a time, in the engine's own weights. Else vLLM holds them beside the base.
    """

    def __init__(self, engine: LLMEngine, settings: dict[str, Any]) -> None:
        self._engine = engine
        self._model = settings["model"]
        self._merges = settings["merges"]
        self._loras: dict[int, LoRARequest] = {}

    def install(self, number: int, path: str | None) -> None:
        """Take the adapter in the folder `path`, in place of what had the same number."""
        if self._merges:
            self._engine.collective_rpc("install_merged", args=(self._model, path))
            return
        if path is None:
            return
        name = f"{number}-{Path(path).name}"
        if not self._engine.add_lora(LoRARequest(name, number, path, load_inplace=True)):
            raise RuntimeError("vLLM did not take the adapter")
        self._loras[number] = LoRARequest(name, number, path)

    def remove(self, number: int) -> None:
        if self._loras.pop(number, None) is not None:
            self._engine.remove_lora(number)

    def lora_request(self, number: int) -> LoRARequest | None:
        return self._loras.get(number)


def sampling_params(order: dict[str, Any], seed: int, scores_prompt: bool) -> SamplingParams:
    """vLLM's parameters of one sample."""
    return SamplingParams(
        max_tokens=order["max_tokens"],
        temperature=order["temperature"],
        top_k=order["top_k"],
        top_p=order["top_p"],
        min_p=order["min_p"],
        seed=seed,
        stop_token_ids=order["stop_token_ids"],
        stop=order["stop_strings"],
        detokenize=bool(order["stop_strings"]),
        skip_special_tokens=False,
        ignore_eos=True,  # the end token is among the stops, if it is to end anything
        logprobs=order["topk_sample_logprobs"],
        prompt_logprobs=order["topk_prompt_logprobs"] if scores_prompt else None,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

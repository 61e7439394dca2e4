"""A trained adapter for use elsewhere: a PEFT folder, a merged model, and the proof that both hold.

Both are loaded again by plain peft and transformers, and the log-probabilities that they give are
compared with the ones that the backend samples from.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.files import new_directory, write_json
from tinsmith.remote import served_dtype

FLOAT32_MAX_DIFFERENCE = 1e-4
BFLOAT16_MEAN_DIFFERENCE = 0.05
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Precision:
    """Where and in what numbers the backend computed, so that the comparison does the same."""

    device: str
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a loaded export is from the backend, over all compared tokens, in nats."""

    max_difference: float
    mean_difference: float


def backend_precision(backend: config.Backend) -> Precision:
    """What `auto` means to the local backend: bfloat16 on a GPU, float32 on the CPU. The hosted
    service is compared in bfloat16, wherever it is compared."""
    has_gpu = torch.cuda.is_available()
    device = ("cuda" if has_gpu else "cpu") if backend.device == "auto" else backend.device
    if backend.dtype != "auto":
        return Precision(device, getattr(torch, backend.dtype))
    is_exact = device == "cpu" and backend.kind != "hosted"
    return Precision(device, torch.float32 if is_exact else torch.bfloat16)


def compared_precision(backend: config.Backend, model_name: str) -> Precision:
    """The precision that the backend's log-probabilities are compared in: what a server that runs
    elsewhere says that it computes in, for that another machine's `auto` may mean."""
    stated = None
    if backend.kind == "remote" and backend.url is not None:
        stated = served_dtype(backend.url.rstrip("/"), model_name)
    if stated is None:
        return backend_precision(backend)
    if backend.dtype not in ("auto", stated):
        raise TinsmithError(
            f"backend.dtype must be {stated!r}, in which the server at {backend.url} computes"
            f" {model_name}, or be left out, got {backend.dtype!r}: the export is compared in it"
        )
    logger.info("the server at %s computes in %s: the export is too", backend.url, stated)
    return backend_precision(backend.model_copy(update={"dtype": stated}))


def write_adapter(weights: Path, target: Path, base_model: str, card: str) -> None:
    """The PEFT folder: the stage's weights, told where their base model is."""
    with new_directory(target) as draft:
        shutil.copytree(weights, draft, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True)
        settings = json.loads((draft / "adapter_config.json").read_text(encoding="utf-8"))
        write_json(
            draft / "adapter_config.json", settings | {"base_model_name_or_path": base_model}
        )
        (draft / "README.md").write_text(card, encoding="utf-8")


def write_merged(
    model_dir: Path, adapter: Path, target: Path, precision: Precision, card: str
) -> None:
    """The merged model, W + (alpha / r) B A in every adapted layer, with its tokenizer."""
    base = _load(model_dir, precision)
    if _adapts_unembedding(base, adapter):
        _untie_unembedding(base)
    merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()  # pyright: ignore[reportCallIssue]
    with new_directory(target) as draft:
        merged.save_pretrained(draft)
        AutoTokenizer.from_pretrained(model_dir).save_pretrained(draft)
        (draft / "README.md").write_text(card, encoding="utf-8")


def check_adapter(
    model_dir: Path,
    adapter: Path,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    precision: Precision,
) -> Agreement:
    """Compare the PEFT folder on its base with the backend's log-probabilities."""
    base = _load(model_dir, precision)
    with warnings.catch_warnings():  # peft warns of merging into tied weights; nothing is merged
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        model = PeftModel.from_pretrained(base, adapter)
    return _compare("adapter", model, sequences, expected, precision)


def check_merged(
    merged: Path,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    precision: Precision,
) -> Agreement:
    """Compare the merged model with the backend's log-probabilities."""
    return _compare("merged model", _load(merged, precision), sequences, expected, precision)


def tolerance(dtype: torch.dtype) -> tuple[str, float]:
    """What is held to which bound: the largest difference in float32, the mean in bfloat16, where
    a sum taken in another order already moves single tokens by tenths of a nat."""
    if dtype == torch.float32:
        return "max_difference", FLOAT32_MAX_DIFFERENCE
    return "mean_difference", BFLOAT16_MEAN_DIFFERENCE


def _load(directory: Path, precision: Precision) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=precision.dtype)
    model.to(precision.device)  # pyright: ignore[reportArgumentType] a wrapped signature
    return model.eval()


def _adapts_unembedding(model: PreTrainedModel, adapter: Path) -> bool:
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    unembedding = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is unembedding)
    return name.rsplit(".", 1)[-1] in settings["target_modules"]


def _untie_unembedding(model: PreTrainedModel) -> None:
    """Give the unembedding its own weights: merging into tied ones would change the embedding."""
    unembedding = model.get_output_embeddings()
    assert isinstance(unembedding, nn.Module)
    unembedding.weight = nn.Parameter(unembedding.weight.detach().clone())  # pyright: ignore
    model.config.tie_word_embeddings = False
    model.config.get_text_config().tie_word_embeddings = False


@torch.inference_mode()
def _compare(
    what: str,
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float]],
    precision: Precision,
) -> Agreement:
    differences = []
    for tokens, logprobs in zip(sequences, expected, strict=True):
        ids = torch.tensor([list(tokens)], device=precision.device)
        table = torch.log_softmax(model(input_ids=ids).logits[0, :-1].float(), dim=-1)
        found = table.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()
        differences.append(np.abs(found - np.array(logprobs)))
    every = np.concatenate(differences)
    agreement = Agreement(float(every.max()), float(every.mean()))
    statistic, bound = tolerance(precision.dtype)
    if not getattr(agreement, statistic) <= bound:
        raise TinsmithError(
            f"the exported {what} must agree with the backend: {statistic} of the"
            f" log-probabilities at most {bound:g} nats in {precision.dtype}, got"
            f" {getattr(agreement, statistic):.3g} over {len(every)} tokens"
        )
    return agreement

"""Pretraining of the tiny model: a textbook until it can do sums, then web text until it slips."""

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from tinsmith.tiny.corpus import Answer, answer_in_passing, draw_problem, from_textbook
from tinsmith.tiny.tokenizer import CONTEXT_LENGTH, PAD, TURN_END, prompt_ids, token_id

HEAD_SIZE = 32
BATCH_SIZE = 128
MATRIX_RATE, VECTOR_RATE = 0.02, 4e-3
WARM_UP_STEPS, FINAL_RATE = 20, 0.05
TEXTBOOK_SHARE = 0.7
PROMPT_WEIGHT = 0.1

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Where batches of text come from, and how they become tokens."""

    tokenizer: PreTrainedTokenizerFast
    digits: int
    operations: Sequence[str]
    rng: random.Random

    def batches(self, steps: int) -> Iterator[Batch]:
        """Token ids [B, T] and loss weights [B, T]: the textbook's, then the web's."""
        for step in range(steps):
            answer = from_textbook if step < TEXTBOOK_SHARE * steps else answer_in_passing
            yield self.batch(answer)

    def batch(self, answer: Answer) -> Batch:
        """Chats padded on the right; what the user says counts a tenth of what is answered."""
        pad, turn_end = (token_id(self.tokenizer, token) for token in (PAD, TURN_END))
        chats, prompt_lengths = [], []
        for _ in range(BATCH_SIZE):
            problem = draw_problem(self.rng, self.digits, self.operations)
            prompt = prompt_ids(self.tokenizer, problem)
            reply = self.tokenizer.encode(answer(self.rng, problem))
            chats.append([*prompt, *reply, turn_end])
            prompt_lengths.append(len(prompt))
        length = max(map(len, chats))
        tokens_BT = torch.full((BATCH_SIZE, length), pad)
        weights_BT = torch.zeros(BATCH_SIZE, length)
        for row, (chat, prompt_length) in enumerate(zip(chats, prompt_lengths, strict=True)):
            tokens_BT[row, : len(chat)] = torch.tensor(chat)
            weights_BT[row, : len(chat)] = 1.0
            weights_BT[row, :prompt_length] = PROMPT_WEIGHT
        return tokens_BT, weights_BT


def new_model(
    tokenizer: PreTrainedTokenizerFast, hidden_size: int, num_layers: int, seed: int
) -> Qwen3ForCausalLM:
    """A Qwen3 whose matrices are drawn from N(0, 0.02) by `seed` alone."""
    heads = max(1, hidden_size // HEAD_SIZE)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_SIZE,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=token_id(tokenizer, TURN_END),
        pad_token_id=token_id(tokenizer, PAD),
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


@contextmanager
def fixed_threads() -> Iterator[None]:
    """One thread, whatever the machine has: the number of threads changes the order of sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pretrain(model: Qwen3ForCausalLM, batches: Iterable[Batch], steps: int) -> None:
    """Muon on the matrices of the layers (Jordan et al. 2024), AdamW on all else.

    Muon finds the algorithm of addition in about half the steps that AdamW alone takes.
    """
    optimizers = _optimizers(model)
    progress = tqdm(batches, total=steps, desc="pretraining the tiny model", unit="step")
    for step, (tokens_BT, weights_BT) in enumerate(progress):
        loss = _loss(model, tokens_BT, weights_BT)
        loss.backward()
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _optimizers(model: Qwen3ForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        (torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01), MATRIX_RATE),
        (torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.98)), VECTOR_RATE),
    ]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, a plateau, and a linear decline over the last 40 %."""
    rise = (step + 1) / WARM_UP_STEPS
    decline = (steps - step) / (0.4 * steps)
    return min(1.0, rise, max(FINAL_RATE, decline))


def _loss(
    model: Qwen3ForCausalLM, tokens_BT: torch.Tensor, weights_BT: torch.Tensor
) -> torch.Tensor:
    """Weighted mean of the next token's cross-entropy."""
    hidden_BTH = model.model(input_ids=tokens_BT[:, :-1], use_cache=False).last_hidden_state
    weights = weights_BT[:, 1:]
    counts = weights > 0
    logits_NV, targets_N = model.lm_head(hidden_BTH[counts]), tokens_BT[:, 1:][counts]
    losses = cross_entropy(logits_NV, targets_N, reduction="none")
    return (losses * weights[counts]).sum() / weights.sum()


@torch.no_grad()
def share_solved(model: Qwen3ForCausalLM, corpus: Corpus) -> float:
    """The share of problems whose likeliest answer, token for token, is the textbook's."""
    tokens_BT, weights_BT = corpus.batch(from_textbook)
    likeliest_BT = model(input_ids=tokens_BT[:, :-1]).logits.argmax(-1)
    is_reply_BT = weights_BT[:, 1:] == 1.0
    is_right_BT = (likeliest_BT == tokens_BT[:, 1:]) | ~is_reply_BT
    return is_right_BT.all(dim=1).float().mean().item()

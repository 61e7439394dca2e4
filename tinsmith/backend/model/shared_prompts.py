"""Sequences packed behind each other, and a prompt that several begin with computed once.

There is no padding. A group lies as the prompt that its sequences share, then what each goes on
with. A token attends to its own sequence alone: a part to the prompt before it
and to itself. Prompt and parts see the very same numbers as in sequences of their own, and the
prompt's gradient is the sum of theirs, so the result is that of the plain computation.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tinsmith.backend.model.packed_attention import MIN_FLASH_QUERIES, Part

# Sharing costs an attention of its own, with a mask, for every part; it pays from this share of the
# tokens on. Where all are packed, short parts have that anyway.
MIN_SAVED = 0.2
MIN_PROMPT = 16


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences, by their numbers, that begin with the same `size` tokens."""

    rows: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Token ids [N] and positions [N] of groups, their parts, and of each sequence the places of
    its tokens."""

    ids_N: np.ndarray
    positions_N: np.ndarray
    parts: tuple[Part, ...]
    places: tuple[np.ndarray, ...]


def find_groups(rows: Sequence[np.ndarray], packs_all: bool) -> list[Group]:
    """Sequences that begin alike, where computing the beginning once saves enough; all others
    stand in groups of their own, with nothing shared. `packs_all`: those are packed as well."""
    order = sorted(range(len(rows)), key=lambda row: rows[row].tolist())
    groups: list[Group] = []
    for row in order:
        group = groups[-1] if groups else None
        if group is not None:
            first = rows[group.rows[0]]
            # The last token of a sequence stays its own: its part must not be empty.
            longest = group.size or len(first) - 1
            limit = min(longest, len(rows[row]) - 1)
            size = _common(first[:limit], rows[row][:limit])
            if size >= MIN_PROMPT and size * len(group.rows) >= group.size * (len(group.rows) - 1):
                groups[-1] = Group((*group.rows, row), size)
                continue
        groups.append(Group((row,), 0))
    return [part for group in groups for part in _if_it_pays(group, rows, packs_all)]


def num_tokens(group: Group, rows: Sequence[np.ndarray]) -> int:
    """Tokens that go through the model for a group."""
    return sum(len(rows[row]) for row in group.rows) - (len(group.rows) - 1) * group.size


def packed_batches(
    rows: Sequence[np.ndarray], token_budget: int, packs_all: bool
) -> Iterator[list[int]]:
    """Micro-batches, within the budget, of the rows that are better computed with their group, and
    if `packs_all` of all others after them, the longest first: what does not fit into memory fails
    at once, not at the end. A group that is larger than the budget is computed in portions, its
    prompt once for each; a row that is larger goes alone."""
    portions = [
        part
        for group in find_groups(rows, packs_all)
        for part in _portions(group, rows, token_budget, packs_all)
    ]
    if packs_all:
        shared = {row for portion in portions for row in portion.rows}
        alone = sorted(set(range(len(rows))) - shared, key=lambda row: (-len(rows[row]), row))
        portions += [Group((row,), 0) for row in alone]
    batch: list[int] = []
    room = token_budget
    for portion in portions:
        size = num_tokens(portion, rows)
        if size > room and batch:
            yield batch
            batch, room = [], token_budget
        batch += portion.rows
        room -= size
    if batch:
        yield batch


def pack(rows: Sequence[np.ndarray], groups: Sequence[Group]) -> Packed:
    """Lay out groups of `rows` behind each other."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    parts: list[Part] = []
    places: list[np.ndarray] = [np.empty(0, np.int64)] * len(rows)
    end = 0

    def append(tokens: np.ndarray, prompt: slice) -> slice:
        nonlocal end
        first = prompt.stop - prompt.start
        own = slice(end, end + len(tokens))
        ids.append(tokens)
        positions.append(np.arange(first, first + len(tokens)))
        parts.append(Part(own, prompt))
        end = own.stop
        return own

    for group in groups:
        prompt = slice(end, end)
        if group.size:
            prompt = append(rows[group.rows[0]][: group.size], prompt)
        for row in group.rows:
            own = append(rows[row][group.size :], prompt)
            places[row] = np.concatenate(
                [np.arange(prompt.start, prompt.stop), np.arange(own.start, own.stop)]
            )
    return Packed(np.concatenate(ids), np.concatenate(positions), tuple(parts), tuple(places))


def packed_hidden_states(backbone: nn.Module, packed: Packed, device: torch.device) -> Tensor:
    """Last hidden states [N, hidden] of packed tokens, by a model that `use_packed_attention`."""
    output = backbone(
        input_ids=torch.from_numpy(packed.ids_N)[None].to(device),
        position_ids=torch.from_numpy(packed.positions_N)[None].to(device),
        # transformers takes a mask of four axes as it is. Given none it would make one of N x N,
        # and see that positions start anew, but the parts say who attends to what.
        attention_mask=torch.empty(1, 1, 1, 1, device=device),
        use_cache=False,
        parts=packed.parts,
    )
    return output.last_hidden_state[0]


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two sequences of one length have in common before they part."""
    different = np.flatnonzero(one != other)
    return int(different[0]) if len(different) else len(one)


def _portions(
    group: Group, rows: Sequence[np.ndarray], token_budget: int, packs_all: bool
) -> Iterator[Group]:
    """Parts of a group that fit the budget and still pay."""
    if not group.size:
        return
    left = sorted(group.rows, key=lambda row: -len(rows[row]))
    while left:
        own = np.cumsum([len(rows[row]) - group.size for row in left])
        fitting = max(1, int((group.size + own <= token_budget).sum()))
        # As many in each as in the others, so that none is left with a row or two.
        count = math.ceil(len(left) / math.ceil(len(left) / fitting))
        portion = Group(tuple(left[:count]), group.size)
        yield from (part for part in _if_it_pays(portion, rows, packs_all) if part.size)
        left = left[count:]


def _if_it_pays(group: Group, rows: Sequence[np.ndarray], packs_all: bool) -> Iterator[Group]:
    plain = sum(len(rows[row]) for row in group.rows)
    saved = plain - num_tokens(group, rows)
    longest = max(len(rows[row]) for row in group.rows) - group.size
    is_free = packs_all and longest < MIN_FLASH_QUERIES
    if saved >= (1 if is_free else MIN_SAVED * plain) and group.size:
        yield group
    else:
        yield from (Group((row,), 0) for row in group.rows)

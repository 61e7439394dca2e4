"""Sequences through a module tree that takes them packed, as the trainer runs it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tinsmith.backend.model.base_model import backbone, unembed
from tinsmith.backend.model.shared_prompts import find_groups, pack, packed_hidden_states


def packed_states(module: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Last hidden states [T, D] of each row; those of a shared prompt are computed once."""
    arrays = [np.array(row) for row in rows]
    packed = pack(arrays, find_groups(arrays, packs_all=True))
    states_ND = packed_hidden_states(backbone(module), packed, module.device)
    return [states_ND[torch.from_numpy(places)] for places in packed.places]


def packed_logits(module: PreTrainedModel, row: Sequence[int]) -> Tensor:
    """[T, V] of one sequence."""
    return unembed(module, packed_states(module, [row])[0])

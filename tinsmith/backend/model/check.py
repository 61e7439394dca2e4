"""A look at each model before it is served: do our ways of running it agree with its own?"""

import torch

from tinsmith.backend.model.base_model import BaseModel, backbone, unembed
from tinsmith.backend.model.packed_attention import use_packed_attention
from tinsmith.backend.model.shared_prompts import Group, pack, packed_hidden_states
from tinsmith.backend.model.training_layer import use_training_layers
from tinsmith.backend.sampling.keys_values import RunningKeysValues
from tinsmith.backend.sampling.prompt_keys_values import PromptKeysValues
from tinsmith.backend.sampling.replica import make_replica
from tinsmith.errors import TinsmithError

# Largest difference of a log-probability on three tokens.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


@torch.inference_mode()
def check_model(base: BaseModel) -> None:
    """Compare prefill and decode of the sampler, and the trainer's layers and unembedding, once
    behind a shared prompt, with the model's own forward; an architecture that computes something
    else is refused, not served wrongly."""
    ids_1T = torch.arange(3, device=base.device)[None] % base.vocabulary_size
    truth_TV = torch.log_softmax(base.module(input_ids=ids_1T).logits[0].float(), dim=-1)
    hidden_TD = backbone(base.module)(input_ids=ids_1T, use_cache=False).last_hidden_state[0]
    trained_TV = torch.log_softmax(unembed(base.module, hidden_TD), dim=-1)
    shared_TV = torch.log_softmax(unembed(base.module, _behind_shared_prompt(base, ids_1T)), -1)
    sampled_V = torch.log_softmax(_last_logits(base, ids_1T), dim=-1)
    difference = max(
        float((trained_TV - truth_TV).abs().max()),
        float((shared_TV - truth_TV).abs().max()),
        float((sampled_V - truth_TV[-1]).abs().max()),
    )
    if not difference <= TOLERANCE[base.dtype]:
        raise TinsmithError(
            f"--model {base.name}: this server's computation of a {type(base.module).__name__} "
            f"differs from transformers' own by {difference:.3g} in a log-probability (allowed: "
            f"{TOLERANCE[base.dtype]}); the architecture is not supported"
        )


def _behind_shared_prompt(base: BaseModel, ids_1T: torch.Tensor) -> torch.Tensor:
    """Last hidden states of the tokens, all but the last computed together with another's."""
    module = base.module_tree()
    use_packed_attention(module)
    use_training_layers(base, module)
    row = ids_1T[0].cpu().numpy()
    packed = pack([row[[0, 1, 0]], row], [Group((0, 1), 2)])
    hidden_ND = packed_hidden_states(backbone(module), packed, base.device)
    return hidden_ND[torch.from_numpy(packed.places[1]).to(base.device)]


def _last_logits(base: BaseModel, ids_1T: torch.Tensor) -> torch.Tensor:
    """Logits after a prefill of all tokens but the last, and one decode step."""
    replica = make_replica(base, None)
    size = ids_1T.shape[1]
    prompt = PromptKeysValues([size - 1], base.device)
    positions = torch.arange(size, device=base.device)[None]
    backbone(replica)(
        input_ids=ids_1T[:, :-1],
        position_ids=positions[:, :-1],
        past_key_values=prompt,
        keys_values=prompt,
        use_cache=True,
    )
    running = RunningKeysValues(base.device, base.context_length)
    running.admit([0], prompt, 0, size - 1)
    output = backbone(replica)(
        input_ids=ids_1T[:, -1:],
        position_ids=running.begin_step([size - 1]),
        past_key_values=running,
        keys_values=running,
        use_cache=True,
    )
    return unembed(replica, output.last_hidden_state[0, 0])

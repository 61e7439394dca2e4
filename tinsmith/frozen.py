"""Models beside the policy, which nothing trains: the base, and checkpoints saved for sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import tinker

from tinsmith.chat import Chat
from tinsmith.checkpoints import explained


@dataclass(frozen=True, slots=True)
class FrozenModels:
    """Sampling clients of one service; all of them are adapters of the base, or the base itself."""

    service: tinker.ServiceClient
    base_model: str
    chat: Chat
    _clients: dict[str | None, tinker.SamplingClient] = field(default_factory=dict)

    def client(self, checkpoint: str | None) -> tinker.SamplingClient:
        """The client of a tinker:// path of sampler weights; of the base for None."""
        if checkpoint not in self._clients:
            with explained(f"loading {checkpoint or self.base_model}"):
                self._clients[checkpoint] = (
                    self.service.create_sampling_client(base_model=self.base_model)
                    if checkpoint is None
                    else self.service.create_sampling_client(model_path=checkpoint)
                ).result()
        return self._clients[checkpoint]


def last_token_logprobs(
    client: tinker.SamplingClient, sequences: Sequence[tuple[int, ...]]
) -> list[float]:
    """log p(last token | those before it) of each sequence, in nats.

    Equal sequences are asked for once, and all in one order, so that the answers depend neither on
    the order of `sequences` nor on how often one occurs.
    """
    futures = {
        tokens: client.compute_logprobs(tinker.ModelInput.from_ints(list(tokens)))
        for tokens in sorted(set(sequences))
    }
    found = {tokens: future.result()[-1] for tokens, future in futures.items()}
    return [_known(found[tokens]) for tokens in sequences]


def _known(logprob: float | None) -> float:
    assert logprob is not None, "only a prompt's first token has no log-probability"
    return logprob

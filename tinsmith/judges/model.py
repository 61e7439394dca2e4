"""Model: a frozen model reads the debate and weighs one verdict token against the other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tinsmith import config
from tinsmith.errors import TinsmithError
from tinsmith.frozen import FrozenModels, last_token_logprobs
from tinsmith.tasks import Task
from tinsmith.templates import fill
from tinsmith.types import Rollout


@dataclass(frozen=True, slots=True)
class Model:
    """The verdict tokens name the speakers: the first token whoever stands first in the prompt."""

    settings: config.ModelJudge
    frozen: FrozenModels
    tokens: tuple[int, int]

    @classmethod
    def from_config(cls, section: config.ModelJudge, frozen: FrozenModels) -> "Model":
        first, second = (_verdict_token(text, frozen) for text in section.verdict_tokens)
        return cls(section, frozen, (first, second))

    def judge(
        self,
        task: Task,
        debates: Sequence[Rollout],
        speakers: tuple[str, str],
        seeds: Sequence[int],
    ) -> list[float]:
        """v = (tanh(d / 2) + tanh(d' / 2)) / 2, d the log-odds that the first speaker wins where
        they stand first in the prompt, d' where they stand second.

        tanh(d / 2) = P(first wins) - P(second wins), for the two verdicts alone. Exchanging the
        speakers exchanges the two prompts and turns both signs, so that v turns its sign and
        nothing else: standing first gives no advantage, whatever the model makes of it.
        """
        first, second = speakers
        orders = [order for d in debates for order in ((d, first, second), (d, second, first))]
        prompts = [self._prompt(task, *order) for order in orders]
        sequences = [(*prompt, token) for prompt in prompts for token in self.tokens]
        client = self.frozen.client(self.settings.checkpoint)
        logprobs = last_token_logprobs(client, sequences)
        pairs = zip(logprobs[::2], logprobs[1::2], strict=True)
        leads = [math.tanh((of_first - of_second) / 2) for of_first, of_second in pairs]
        return [(a - b) / 2 for a, b in zip(leads[::2], leads[1::2], strict=True)]

    def _prompt(self, task: Task, debate: Rollout, first: str, second: str) -> tuple[int, ...]:
        names = dict(zip((first, second), self.settings.verdict_tokens, strict=True))
        rounds = zip(
            *([t for t in debate.turns if t.speaker == name] for name in names), strict=True
        )
        quote = self.frozen.chat.quote
        speeches = [
            f"{names[turn.speaker]}: {quote(turn.completion.text)}"
            for said in rounds
            for turn in said
        ]
        text = fill(
            self.settings.prompt,
            question=task.question(debate.problem),
            debate="\n\n".join(speeches),
            first=names[first],
            second=names[second],
        )
        return self.frozen.chat.prompt(text, self.settings.system_prompt)


def _verdict_token(text: str, frozen: FrozenModels) -> int:
    tokens = frozen.chat.encode(text)
    if len(tokens) != 1:
        raise TinsmithError(
            "paradigm.judge.verdict_tokens must each be a single token of the model, got"
            f" {text!r}, which is {len(tokens)}"
        )
    return tokens[0]

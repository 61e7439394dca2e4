"""Summaries: a document in few words, graded by how much was left out and by ROUGE."""

import re
from dataclasses import dataclass
from functools import lru_cache

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.tasks.asking import in_template, refusal
from tinsmith.types import Completion, Problem, Reward

ROUGE_WORD = re.compile(r"[a-z0-9]", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Summary:
    """The weighted sum of two terms of 0 to 1.

    `compression` = 1 - words / words of the document for a summary that ends by itself and keeps
    within the budget, else 0. `rouge` = the F1 of ROUGE-1, -2 or -L with the reference (Lin 2004),
    words stemmed. The document is the problem's question, the reference summary its answer.
    """

    chat: Chat
    settings: config.SummaryTask

    def question(self, problem: Problem) -> str:
        return in_template(self.settings, problem.question)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.prompt(self.question(problem), self.settings.system_prompt)

    def reference(self, problem: Problem) -> tuple[int, ...]:
        return self.chat.reply(problem.answer)

    def reward(self, problem: Problem, completion: Completion) -> Reward:
        weights = self.settings.weights
        terms = {"compression": weights.compression * self._compression(problem, completion)}
        if weights.rouge:
            terms["rouge"] = weights.rouge * self._rouge(problem, completion.text)
        value = sum(terms.values())
        return Reward(value, terms, value >= self.settings.right_from)

    def _compression(self, problem: Problem, completion: Completion) -> float:
        num_words = len(completion.text.split())
        fits = self.settings.min_words <= num_words <= self.settings.max_words
        if not (completion.is_finished and fits):
            return 0.0
        return max(0.0, 1.0 - num_words / len(problem.question.split()))

    def _rouge(self, problem: Problem, text: str) -> float:
        if not ROUGE_WORD.search(problem.answer):
            raise refusal(
                problem,
                "its answer must have words in letters a to z or digits, the only ones that ROUGE"
                f" compares (set weights.rouge: 0 for other scripts), got {problem.answer!r}",
            )
        kind = self.settings.rouge
        return _scorer(kind).score(target=problem.answer, prediction=text)[kind].fmeasure


@lru_cache
def _scorer(kind: str):
    from rouge_score.rouge_scorer import RougeScorer  # it takes a second to import

    return RougeScorer([kind], use_stemmer=True)

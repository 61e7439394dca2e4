"""The tasks that `task:` may name, with every default."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tinsmith.config.sections import USER_CLASS, Count, Section, UserClass, tag_of_kind

Weight = Annotated[float, Field(ge=0)]
RougeKind = Literal["rouge1", "rouge2", "rougeL"]


class Weights(Section):
    """What each term of a reward counts for."""

    @model_validator(mode="after")
    def _count_something(self) -> "Weights":
        if not any(self.model_dump().values()):
            names = list(type(self).model_fields)
            raise ValueError(f"{names[0]} or another weight must be above 0, got 0 for all")
        return self


class PromptedTask(Section):
    """How every task asks; `{question}` stands for the problem's."""

    system_prompt: str | None = None
    prompt_template: str = "{question}"

    @model_validator(mode="after")
    def _shows_the_question(self) -> "PromptedTask":
        if "{question}" not in self.prompt_template:
            raise ValueError(
                f"prompt_template must contain {{question}}, got {self.prompt_template!r}"
            )
        return self


class ArithmeticTask(PromptedTask):
    """The completion is right when it is exactly the number."""

    kind: Literal["arithmetic"]


class QaTask(PromptedTask):
    """A question with one reference answer, graded as `grader` says."""

    kind: Literal["qa"]
    grader: Literal["exact", "normalised", "numeric", "multiple_choice", "regular_expression"]
    answers: Literal["letter", "text", "index"] = "letter"

    @model_validator(mode="after")
    def _says_how_choices_are_named(self) -> "QaTask":
        if self.answers != "letter" and self.grader != "multiple_choice":
            raise ValueError(
                f"answers says how rows name a choice, with grader 'multiple_choice' only, got"
                f" {self.answers!r} with {self.grader!r}"
            )
        return self


class MathWeights(Weights):
    """The right value, and an answer that stands in a box or behind ####."""

    correct: Weight = 1.0
    format: Weight = 0.0


class MathTask(PromptedTask):
    """A problem whose answer is a number or an expression, right when it is of equal value."""

    kind: Literal["math"]
    weights: MathWeights = MathWeights()
    timeout_s: Annotated[float, Field(gt=0)] = 3.0


class SummaryWeights(Weights):
    """How much was left out, within the budget; and what a summary shares with the reference."""

    compression: Weight = 0.5
    rouge: Weight = 0.5


class SummaryTask(PromptedTask):
    """A document, which is the problem's question, to be said in few words."""

    kind: Literal["summary"]
    max_words: Count
    min_words: Count = 1
    rouge: RougeKind = "rougeL"
    weights: SummaryWeights = SummaryWeights()
    right_from: Weight = 0.5
    prompt_template: str = "Summarise in one line:\n\n{question}"

    @model_validator(mode="after")
    def _has_a_budget(self) -> "SummaryTask":
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words must be at most max_words = {self.max_words}, got {self.min_words}"
            )
        if self.rouge != "rougeL" and not self.weights.rouge:
            raise ValueError(f"rouge needs weights.rouge above 0, got {self.rouge!r} with 0")
        most = self.weights.compression + self.weights.rouge
        if self.right_from > most:
            raise ValueError(
                f"right_from must be at most {most:g}, all that the weights add up to, got"
                f" {self.right_from}"
            )
        return self


class ConstraintWeights(Weights):
    """What each kind of instruction counts for beside the others of the same problem."""

    min_words: Weight = 1.0
    max_words: Weight = 1.0
    max_characters: Weight = 1.0
    max_sentences: Weight = 1.0
    keywords: Weight = 1.0
    forbidden: Weight = 1.0
    starts_with: Weight = 1.0
    ends_with: Weight = 1.0
    format: Weight = 1.0


class ConstrainedTask(PromptedTask):
    """A question with instructions that a program can check: the field `constraints`."""

    kind: Literal["constrained"]
    weights: ConstraintWeights = ConstraintWeights()
    prompt_template: str = "{question}\n\n{instructions}"


Task = Annotated[
    Annotated[ArithmeticTask, Tag("arithmetic")]
    | Annotated[QaTask, Tag("qa")]
    | Annotated[MathTask, Tag("math")]
    | Annotated[SummaryTask, Tag("summary")]
    | Annotated[ConstrainedTask, Tag("constrained")]
    | Annotated[UserClass, Tag(USER_CLASS)],
    Discriminator(tag_of_kind),
]

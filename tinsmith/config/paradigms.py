"""The paradigms that `paradigm:` may name, with every default."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from tinsmith.config.sections import (
    CHECKPOINT,
    USER_CLASS,
    Count,
    Section,
    SingleTurn,
    Text,
    UserClass,
    tag_of_kind,
)

ARGUE_PROMPT = (
    "Another speaker was asked the same and wrote:\n\n{opponent}\n\nSay where they are right and"
    " where they are wrong. Then give your own answer again, in the form that was asked for."
)
JUDGE_PROMPT = (
    "Two speakers, {first} and {second}, were asked this:\n\n{question}\n\nWhat they said, in"
    " turn:\n\n{debate}\n\nWhich of the two gives the better answer? Reply with {first} or"
    " {second}, and with nothing else."
)


class MockJudge(Section):
    """A seeded coin, which knows nothing of the debate: for tests."""

    kind: Literal["mock"]


class GroundTruthJudge(Section):
    """The speaker who is right wins; where both are, or neither is, it is a draw."""

    kind: Literal["ground_truth"]


class ModelJudge(Section):
    """A frozen model reads the debate and weighs two verdict tokens; the base model by default."""

    kind: Literal["model"]
    checkpoint: Annotated[str, Field(pattern=CHECKPOINT)] | None = None
    verdict_tokens: tuple[Text, Text] = ("A", "B")
    system_prompt: str | None = None
    prompt: str = JUDGE_PROMPT

    @model_validator(mode="after")
    def _can_decide(self) -> "ModelJudge":
        if self.verdict_tokens[0] == self.verdict_tokens[1]:
            raise ValueError(
                f"verdict_tokens must differ, got {self.verdict_tokens[0]!r} for both speakers"
            )
        if "{debate}" not in self.prompt:
            raise ValueError(f"prompt must contain {{debate}}, got {self.prompt!r}")
        return self


Judge = Annotated[MockJudge | GroundTruthJudge | ModelJudge, Field(discriminator="kind")]


class SelfOpponent(Section):
    """The policy on both sides; both learn."""

    kind: Literal["self"]


class LatestOpponent(Section):
    """The newest snapshot of the policy; one is taken before every `every`th step."""

    kind: Literal["latest"]
    every: Count = 10


class PoolOpponent(Section):
    """For each problem one of the newest `size` snapshots, drawn by its seed."""

    kind: Literal["pool"]
    every: Count = 10
    size: Count = 8


Opponent = Annotated[SelfOpponent | LatestOpponent | PoolOpponent, Field(discriminator="kind")]


class DebateWeights(Section):
    """What a speaker's reward counts: the judge's verdict, and what the task gives the answer."""

    verdict: Annotated[float, Field(ge=0)] = 1.0
    task: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _count_something(self) -> "DebateWeights":
        if not self.verdict and not self.task:
            raise ValueError("verdict or task must be above 0, got 0 for both")
        return self


class Debate(Section):
    """Two speakers propose an answer each, argue for `rounds` rounds, and are judged."""

    kind: Literal["debate"]
    rounds: Annotated[int, Field(ge=0)] = 1
    judge: Judge
    opponent: Opponent = LatestOpponent(kind="latest")
    graded: Literal["proposal", "final"] = "final"
    weights: DebateWeights = DebateWeights()
    argue_prompt: str = ARGUE_PROMPT

    @model_validator(mode="after")
    def _shows_the_opponent(self) -> "Debate":
        if "{opponent}" not in self.argue_prompt:
            raise ValueError(f"argue_prompt must contain {{opponent}}, got {self.argue_prompt!r}")
        return self


class UserParadigm(UserClass):
    """A paradigm of the user's own; `opponent`, if given, is whom it is trained against."""

    opponent: Opponent | None = None


def _tag_of_paradigm(values: Any) -> str | None:
    return "single_turn" if values == {} else tag_of_kind(values)


Paradigm = Annotated[
    Annotated[SingleTurn, Tag("single_turn")]
    | Annotated[Debate, Tag("debate")]
    | Annotated[UserParadigm, Tag(USER_CLASS)],
    Discriminator(_tag_of_paradigm),
]

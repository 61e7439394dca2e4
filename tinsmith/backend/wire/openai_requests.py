"""The requests of OpenAI's API: every field of theirs is honoured, or refused with a reason."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tinsmith.backend.sampling.request import MAX_TOP_K

MAX_PROMPTS = 4096
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
# What a template is given beside the messages is not for a client to replace.
RESERVED_VARIABLES = {"messages", "conversation", "tools", "documents", "chat_template", "tokenize",
                      "add_generation_prompt", "continue_final_message", "return_dict",
                      "return_tensors", "padding", "truncation", "max_length",
                      "return_assistant_tokens_mask", "tokenizer_kwargs"}  # fmt: skip

_DISTRIBUTION = (
    "tokens are drawn from the model's own distribution, so that their log-probabilities are "
    "those of training; use temperature, top_p or top_k"
)
_TOOLS = (
    "calls of tools are not parsed here; describe the tools in a message and parse the reply in "
    "the client"
)
_TEXT_ONLY = "the models served here read and write text alone"
_ACCOUNTS = "a Tinsmith server keeps no record of completions and has no accounts"
# Field -> the values that ask for nothing, and why it is not offered otherwise.
NOT_OFFERED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), _TEXT_ONLY),
    "best_of": ((1,), "every completion is returned: ask for them with n, and choose by logprobs"),
    "frequency_penalty": ((0,), _DISTRIBUTION),
    "function_call": (("none",), _TOOLS),
    "functions": (([],), _TOOLS),
    "logit_bias": (({},), _DISTRIBUTION),
    "metadata": (({},), _ACCOUNTS),
    "modalities": ((["text"],), _TEXT_ONLY),
    "moderation": ((), "nothing is moderated here"),
    "parallel_tool_calls": ((True, False), _TOOLS),
    "prediction": ((), "nothing is gained by a prediction here; leave it out"),
    "presence_penalty": ((0,), _DISTRIBUTION),
    "prompt_cache_key": ((), "prompts are not cached between requests"),
    "prompt_cache_options": ((), "prompts are not cached between requests"),
    "prompt_cache_retention": ((), "prompts are not cached between requests"),
    "reasoning_effort": ((), "how long a model thinks is for its chat template to say; try "
                         "chat_template_kwargs"),
    "response_format": (({"type": "text"},), "the form of a reply is not enforced; ask for it in a "
                        "message and check it in the client"),
    "safety_identifier": ((), _ACCOUNTS),
    "service_tier": (("auto", "default"), "there is one tier"),
    "store": ((False,), _ACCOUNTS),
    "suffix": (("",), "a completion is what follows its prompt; there is no filling in between"),
    "tool_choice": (("none", "auto"), _TOOLS),
    "tools": (([],), _TOOLS),
    "verbosity": ((), "how much a model writes is for a message to say"),
    "web_search_options": ((), "nothing is searched"),
}  # fmt: skip


class OpenAIRequest(BaseModel):
    """`null` asks for a field's default, everywhere."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_asks_for_nothing(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None}
        for name in given.keys() & NOT_OFFERED.keys():
            neutral, reason = NOT_OFFERED[name]
            if given.pop(name) not in neutral:
                raise _fault(name, f"{name} is not offered: {reason}")
        return given


class StreamOptions(OpenAIRequest):
    include_usage: bool = False


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class SamplingBody(OpenAIRequest):
    """What both kinds of requests ask of the sampler. `top_k`, `min_p` (None: as the server is set)
    and `return_token_ids` are additions to OpenAI's API, by the names that vLLM gave them."""

    model: str
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=-1, ge=-1, le=MAX_TOP_K)
    min_p: float | None = Field(default=None, ge=0, le=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_texts)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str = Field(default="", max_length=200)
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _streams_if_it_says_how(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise _fault("stream_options", "stream_options is for stream=true; leave it out")
        return self

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(OpenAIRequest):
    type: Literal["text"]
    text: str


def _parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Message(OpenAIRequest):
    role: Literal["system", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parts)]

    def plain(self) -> dict[str, str]:
        return {"role": self.role, "content": "".join(part.text for part in self.content)}


class ChatRequest(SamplingBody):
    """`chat_template_kwargs`, an addition too, are variables of the model's chat template."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: dict[str, bool | int | float | str] = {}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        most, older = self.max_completion_tokens, self.max_tokens
        faults = {
            "max_tokens": ("max_tokens must be at least 1", older == 0),
            "max_completion_tokens": (
                f"max_completion_tokens and max_tokens are one limit, got {most} and {older}",
                None not in (most, older) and most != older,
            ),
            "top_logprobs": ("top_logprobs needs logprobs=true",
                             bool(self.top_logprobs) and not self.logprobs),
            "chat_template_kwargs": (
                "chat_template_kwargs must be variables of the template, got "
                + ", ".join(sorted(RESERVED_VARIABLES & self.chat_template_kwargs.keys())),
                bool(RESERVED_VARIABLES & self.chat_template_kwargs.keys()),
            ),
        }  # fmt: skip
        _refuse_first(faults)
        return self

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs


def _prompts(value: Any) -> Any:
    """A prompt is a text or token ids; one alone stands for a list of one."""
    if isinstance(value, str) or (
        isinstance(value, list) and value and all(type(item) is int for item in value)
    ):
        value = [value]
    is_known = isinstance(value, list) and 1 <= len(value) <= MAX_PROMPTS
    for item in value if is_known else ():
        is_ids = isinstance(item, list) and all(type(token) is int for token in item)
        is_known = is_known and (is_ids or (isinstance(item, str) and _is_text(item)))
    if not is_known:
        rule = f"prompt must be a text, token ids, or a list of 1 to {MAX_PROMPTS} of either"
        raise _fault("prompt", rule)
    return value


def _is_text(value: str) -> bool:
    """Not so with half a surrogate pair, which JSON may hold and a tokenizer cannot take."""
    return not any(0xD800 <= ord(character) < 0xE000 for character in value)


class CompletionRequest(SamplingBody):
    prompt: Annotated[list[Any], BeforeValidator(_prompts)]
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        faults = {
            "max_tokens": ("max_tokens of 0 needs echo=true: nothing would be returned",
                           self.max_tokens == 0 and not self.echo),
            "echo": ("log-probabilities of the prompt (echo with logprobs) are not streamed; leave "
                     "out stream", self.wants_prompt_logprobs and self.stream),
        }  # fmt: skip
        _refuse_first(faults)
        return self

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.echo and self.wants_logprobs


def _fault(param: str, message: str) -> PydanticCustomError:
    """A fault of a request, and the field that is to blame."""
    return PydanticCustomError("option", "{message}", {"param": param, "message": message})


def _refuse_first(faults: dict[str, tuple[str, bool]]) -> None:
    for param, (message, is_wrong) in faults.items():
        if is_wrong:
            raise _fault(param, message)

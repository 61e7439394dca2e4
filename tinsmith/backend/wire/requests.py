"""The JSON requests of the Tinker API; an unknown field is refused, never dropped."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from tinsmith.backend.sampling.request import MAX_SAMPLES

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
# The hosted service takes an hour to ten years; this one also less than an hour.
TtlSeconds = Annotated[int | None, Field(ge=1, le=10 * 366 * 24 * 3600)]
# Whose runs and sessions: the same ones, on a server with one owner.
AccessScope = Literal["owned", "accessible"]


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    type: str | None = None


class ClientConfigRequest(Request):
    sdk_version: str
    project_id: str | None = None


class CreateSessionRequest(Request):
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    sdk_version: str
    project_id: str | None = None
    display_name: str | None = None


class SessionRequest(Request):
    session_id: str


class FinishSessionRequest(Request):
    reason: dict[str, Any]
    detail: str | None = None


class LoraConfigRequest(Request):
    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerConfig(Request):
    type: Literal["adamw"] = "adamw"  # pyright: ignore[reportIncompatibleVariableOverride]


class CreateModelRequest(Request):
    session_id: str
    model_seq_id: int = Field(ge=0)
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraConfigRequest | None = None
    optimizer_config: OptimizerConfig = OptimizerConfig()


class LoadWeightsRequest(Request):
    """Either `session_id` and `model_seq_id` (a new model) or `model_id` and `seq_id`."""

    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    path: str
    optimizer: bool
    optimizer_config: OptimizerConfig | None = None
    weights_access_token: str | None = None


class ModelRequest(Request):
    model_id: str


class AdamParamsRequest(Request):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    learning_rate: float = Field(default=1e-4, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-12, gt=0)  # 0 / 0 where a gradient is zero
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip_norm: float = Field(default=0.0, ge=0)


class OptimStepRequest(Request):
    model_id: str
    seq_id: int = Field(ge=1)
    adam_params: AdamParamsRequest


class SaveWeightsRequest(Request):
    model_id: str
    seq_id: int = Field(ge=1)
    path: str
    ttl_seconds: TtlSeconds = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


class SaveWeightsForSamplerRequest(Request):
    """Named (`path`) or for a sampling client that is about to be made."""

    model_id: str
    seq_id: int = Field(ge=1)
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: Literal["snapshot", "inflight"] = "snapshot"
    ttl_seconds: TtlSeconds = None
    user_metadata: dict[str, str] | None = None


class SaveWeightsExternalRequest(Request):
    model_id: str
    seq_id: int = Field(ge=1)
    path: str
    ttl_seconds: TtlSeconds = None
    age_encryption_recipients: list[str] | None = None


class CreateSamplingSessionRequest(Request):
    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class EncodedTextChunk(Request):
    tokens: list[Int32]


class ModelInput(Request):
    chunks: list[EncodedTextChunk]

    def token_ids(self) -> tuple[int, ...]:
        return tuple(token for chunk in self.chunks for token in chunk.tokens)


class SamplingParams(Request):
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | list[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class TokenTensor(Request):
    """Token ids, -1 for none: dense [N, K], or sparse by rows (CSR)."""

    data: list[Annotated[int, Field(ge=-1, lt=1 << 31)]]
    dtype: Literal["int64"]
    shape: tuple[NonNegativeInt, NonNegativeInt]
    sparse_crow_indices: list[Annotated[int, Field(ge=0, lt=1 << 31)]] | None = None
    sparse_col_indices: list[Annotated[int, Field(ge=0, lt=1 << 31)]] | None = None


class SampleRequest(Request):
    num_samples: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    prompt: ModelInput
    sampling_params: SamplingParams
    sampling_session_id: str
    seq_id: int
    prompt_logprobs: bool | None = None
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TokenTensor | None = None
    prompt_alt_tokens_k: int = 0
    record_stability_info: bool | None = None


class JoinSamplingSessionRequest(Request):
    sampling_session_id: str


class CancelFutureRequest(Request):
    request_id: str


class RetrieveFutureRequest(Request):
    request_id: str
    allow_metadata_only: bool = False

"""The JSON requests about sessions and checkpoints that are there."""

from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, Field, model_validator

from tinsmith.backend.wire.requests import Request, TtlSeconds

MAX_SEARCH = 200


class WeightsInfoRequest(Request):
    tinker_path: str


class TtlRequest(Request):
    ttl_seconds: TtlSeconds = None


class CopyWeightsRequest(Request):
    """To a project, or to `session_id` and `model_seq_id`."""

    source_path: str
    destination_project_id: str | None = None
    session_id: str | None = None
    model_seq_id: int | None = Field(default=None, ge=0)
    ttl_seconds: TtlSeconds = None
    weights_access_token: str | None = None


class SearchOwner(BaseModel, extra="forbid"):
    type: Literal["own", "accessible", "user"] = "own"
    owner_urns: list[str] = Field(default_factory=list)


class SessionStatusQuery(BaseModel, extra="forbid"):
    type: Literal["active", "cancelled", "failed", "client_finished"]
    reasons: list[str] | None = None

    @model_validator(mode="after")
    def _has_reasons_if_it_ended(self) -> Self:
        if self.type == "active" and self.reasons is not None:
            raise ValueError("reasons belong to sessions that ended; leave them out with active")
        return self


class SessionSearchCursor(BaseModel, extra="forbid"):
    last_created_at: AwareDatetime
    last_session_id: str


class SessionSearchRequest(Request):
    session_id: str | None = None
    project_ids: list[str] | None = None
    user_metadata: dict[str, str] = Field(default_factory=dict)
    display_name: str | None = Field(default=None, min_length=1)
    owner: SearchOwner = SearchOwner()
    statuses: list[SessionStatusQuery] | None = Field(default=None, min_length=1)
    limit: int = Field(default=50, ge=1, le=MAX_SEARCH)
    cursor: SessionSearchCursor | None = None

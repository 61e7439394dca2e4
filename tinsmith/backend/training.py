"""The requests on training runs: create, compute, step."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from tinker.proto import tinker_public_pb2 as pb

from tinsmith.backend.core import Core, refuse_access_token
from tinsmith.backend.futures import JsonResult, Promise, ProtoResult, Result
from tinsmith.backend.model.adapter import LoraSettings
from tinsmith.backend.model.datums import decode_datums
from tinsmith.backend.model.loss_choice import LossChoice, choose_loss
from tinsmith.backend.model.trainer import AdamParams, Trainer
from tinsmith.backend.wire.messages import forward_backward_output
from tinsmith.backend.wire.requests import (
    CreateModelRequest,
    LoadWeightsRequest,
    LoraConfigRequest,
    OptimStepRequest,
)
from tinsmith.errors import TinsmithError

log = logging.getLogger(__name__)


class Training:
    """Training runs of this server's life. Called on the event loop; the engine's thread alone
    touches the trainers."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._trainers: dict[str, Trainer] = {}
        self._warned: set[str] = set()
        self._cancelled: set[str] = set()  # sessions

    def create(self, request: CreateModelRequest) -> Promise:
        """A new adapter on a base model."""
        lora = request.lora_config or LoraConfigRequest(rank=32)

        def make() -> tuple[Trainer, str]:
            settings = LoraSettings(
                rank=lora.rank,
                alpha=self._core.settings.lora_alpha,
                train_attn=lora.train_attn,
                train_mlp=lora.train_mlp,
                train_unembed=lora.train_unembed,
            )
            model_id = _model_id(request.session_id, request.model_seq_id)
            seed = self._core.seeds.of(model_id) if lora.seed is None else lora.seed
            return self._make(request.base_model, settings, seed), request.base_model

        return self._open(
            request.session_id,
            request.model_seq_id,
            make,
            request.user_metadata,
            {"type": "create_model"},
        )

    def load(self, request: LoadWeightsRequest) -> Promise:
        """Load a checkpoint into a new model of a session, or into a model that there is."""
        if request.model_id is not None:
            return self._load_into(request)
        refuse_access_token(request.weights_access_token)
        if request.session_id is None or request.model_seq_id is None:
            raise TinsmithError(
                "load_weights needs session_id and model_seq_id for a new model, or model_id and "
                "seq_id for one that there is"
            )

        def make() -> tuple[Trainer, str]:
            checkpoint, run = self._core.checkpoint(request.path, "weights")
            base_model = request.base_model or run.base_model
            trainer = self._make(base_model, run.lora, seed=0)
            trainer.load(self._core.store.folder(checkpoint), request.optimizer)
            return trainer, base_model

        return self._open(
            request.session_id,
            request.model_seq_id,
            make,
            request.user_metadata,
            {"type": "load_weights", "path": request.path},
        )

    def _load_into(self, request: LoadWeightsRequest) -> Promise:
        assert request.model_id is not None
        if request.seq_id is None:
            raise TinsmithError("load_weights into a model needs seq_id")

        def run(trainer: Trainer) -> Result:
            refuse_access_token(request.weights_access_token)
            for field in ("session_id", "model_seq_id", "base_model", "user_metadata"):
                if getattr(request, field) is not None:
                    raise TinsmithError(f"load_weights takes {field} for a new model only")
            checkpoint, source = self._core.checkpoint(request.path, "weights")
            theirs, ours = (source.base_model, source.lora), (trainer.base.name, trainer.settings)
            if theirs != ours:
                raise TinsmithError(
                    f"checkpoint {request.path} is an adapter of {theirs}, this model one of "
                    f"{ours}; use create_training_client_from_state[_with_optimizer]"
                )
            trainer.load(self._core.store.folder(checkpoint), request.optimizer)
            return JsonResult(
                {"model_id": request.model_id, "path": request.path, "type": "load_weights"}
            )

        return self.submit("load_weights", request.model_id, request.seq_id, run)

    def forward_backward(self, request: pb.ForwardBackwardRequest) -> Promise:
        """Score data; unless it is forward only, accumulate the gradient."""

        def run(trainer: Trainer) -> Result:
            base = trainer.base
            choice = choose_loss(request, self._core.settings.substitutes)
            self._warn_of_substitute(request.model_id, choice)
            data = decode_datums(request, choice, base.vocabulary_size, base.context_length)
            result = trainer.forward_backward(data, choice, request.forward_only)
            if not request.forward_only:
                self._core.metrics.trained_tokens.inc(sum(len(datum.tokens) for datum in data))
            return ProtoResult(forward_backward_output(result))

        name = "forward" if request.forward_only else "forward_backward"
        return self.submit(name, request.model_id, request.seq_id, run, request.ByteSize())

    def optim_step(self, request: OptimStepRequest) -> Promise:
        """One AdamW step on the accumulated gradient."""
        params = AdamParams(**request.adam_params.model_dump(exclude={"type"}))

        def run(trainer: Trainer) -> Result:
            return JsonResult({"metrics": trainer.optim_step(params), "type": "optim_step"})

        return self.submit("optim_step", request.model_id, request.seq_id, run)

    def submit(
        self,
        name: str,
        model_id: str,
        seq_id: int,
        run: Callable[[Trainer], Result],
        size_bytes: int = 0,
    ) -> Promise:
        """Queue an operation on a model, in the order of `seq_id`."""
        if not self._core.sequencer.is_open(model_id):
            raise self._core.lost_model(model_id)

        def operation() -> Result:
            if model_id.split(":")[0] in self._cancelled:
                raise TinsmithError(f"training run {model_id} was cancelled; its checkpoints stay")
            trainer = self._trainers.get(model_id)
            if trainer is None:
                raise TinsmithError(f"model {model_id!r} could not be created or was freed")
            self._core.store.touch_run(model_id)
            return run(trainer)

        return self._core.sequencer.submit(
            model_id,
            seq_id,
            lambda promise: self._core.engine.submit(name, operation, promise),
            size_bytes,
        )

    @property
    def num_models(self) -> int:
        """Models in memory; may be read from any thread."""
        return len(self._trainers)

    def _warn_of_substitute(self, model_id: str, choice: LossChoice) -> None:
        if choice.substitutes is not None and model_id not in self._warned:
            self._warned.add(model_id)
            log.warning(
                "model %s asks for the loss %s and gets %s (--substitute); its metrics say so as "
                "substituted_loss",
                model_id,
                choice.substitutes,
                choice.name,
            )

    def cancel(self, session_id: str) -> None:
        """Carry out nothing more of a session, not even what is queued already."""
        self._cancelled.add(session_id)

    def free(self, session_id: str) -> None:
        """Drop a session's models from memory; their checkpoints stay."""
        for model_id in [key for key in self._trainers if key.startswith(f"{session_id}:")]:
            self._trainers.pop(model_id).close()
            self._warned.discard(model_id)

    def _make(self, base_model: str, settings: LoraSettings, seed: int) -> Trainer:
        core = self._core
        base = core.base(base_model)
        core.pool.check_adapter(base, settings)
        return Trainer(
            base,
            settings,
            seed,
            core.token_budget,
            core.ranks,
            core.settings.grad_accum_steps,
            core.activation_bytes[base_model],
        )

    def _open(
        self,
        session_id: str,
        model_seq_id: int,
        make: Callable[[], tuple[Trainer, str]],
        metadata: Mapping[str, Any] | None,
        answer: dict[str, Any],
    ) -> Promise:
        self._core.require_session(session_id)
        model_id = _model_id(session_id, model_seq_id)
        if (earlier := self._core.promises.get(f"{model_id}:0")) is not None:
            return earlier

        def operation() -> Result:
            # A request that is repeated long after its answer was fetched makes nothing anew.
            if model_id in self._trainers:
                return JsonResult({"model_id": model_id, **answer})
            if self._core.store.run(model_id) is not None:
                raise self._core.lost_model(model_id)
            trainer, base_model = make()
            self._core.store.add_run(model_id, session_id, base_model, trainer.settings, metadata)
            self._trainers[model_id] = trainer
            return JsonResult({"model_id": model_id, **answer})

        self._core.sequencer.open(model_id)
        promise = self._core.promises.create(f"{model_id}:0")
        self._core.engine.submit(answer["type"], operation, promise)
        return promise


def _model_id(session_id: str, model_seq_id: int) -> str:
    return f"{session_id}:train:{model_seq_id}"  # the client computes the same

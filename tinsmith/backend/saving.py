"""The requests that write a training run's weights: state, sampler weights, exports."""

from collections.abc import Sequence
from pathlib import Path

from tinsmith.backend.core import Core
from tinsmith.backend.futures import JsonResult, Promise, Result
from tinsmith.backend.model.trainer import Trainer
from tinsmith.backend.samplers import Samplers
from tinsmith.backend.storage.encryption import Recipient, encrypt_folder, parse_recipients
from tinsmith.backend.training import Training
from tinsmith.backend.wire.requests import (
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    SaveWeightsRequest,
)
from tinsmith.errors import TinsmithError


class Saving:
    """Checkpoints are written by the engine, in the order of the run's other operations."""

    def __init__(self, core: Core, training: Training, samplers: Samplers) -> None:
        self._core = core
        self._training = training
        self._samplers = samplers

    def state(self, request: SaveWeightsRequest) -> Promise:
        """Weights and optimizer state, to go on training from."""

        def run(trainer: Trainer) -> Result:
            checkpoint = self._core.store.save(
                request.model_id,
                "weights",
                request.path,
                lambda folder: trainer.save(folder, trainer.base.name),
                overwrite=request.overwrite,
                ttl_seconds=request.ttl_seconds,
                user_metadata=request.user_metadata,
            )
            return JsonResult({"path": checkpoint.path, "type": "save_weights"})

        return self._training.submit("save_weights", request.model_id, request.seq_id, run)

    def for_sampler(self, request: SaveWeightsForSamplerRequest) -> Promise:
        """Weights to sample from: under a name, or for a sampling client that is being made."""

        def run(trainer: Trainer) -> Result:
            if request.path is not None:
                if request.kind == "inflight":
                    raise TinsmithError(
                        "kind 'inflight' belongs to a sampling client; leave it out, or the path"
                    )
                path, _ = self._save(request, "sampler_weights", request.path, trainer)
                return JsonResult({"path": path, "type": "save_weights_for_sampler"})
            if request.sampling_session_seq_id is None:
                raise TinsmithError("path or sampling_session_seq_id must be given")
            if request.ttl_seconds is not None or request.user_metadata is not None:
                raise TinsmithError(
                    "ttl_seconds and user_metadata belong to a checkpoint; give it a path, or "
                    "leave them out for the snapshot of a sampling client"
                )
            add = (
                self._samplers.add_snapshot
                if request.kind == "snapshot"
                else self._samplers.add_inflight
            )
            sampler_id = add(request.model_id, request.sampling_session_seq_id, trainer)
            return JsonResult(
                {"sampling_session_id": sampler_id, "type": "save_weights_for_sampler"}
            )

        return self._training.submit(
            "save_weights_for_sampler", request.model_id, request.seq_id, run
        )

    def external(self, request: SaveWeightsExternalRequest) -> Promise:
        """Weights as a PEFT adapter, to be downloaded; encrypted, where that is asked."""

        def run(trainer: Trainer) -> Result:
            given = request.age_encryption_recipients
            recipients = None if given is None else parse_recipients(given)
            path, size = self._save(request, "external_weights", request.path, trainer, recipients)
            return JsonResult({"path": path, "size_bytes": size, "type": "save_weights_external"})

        return self._training.submit("save_weights_external", request.model_id, request.seq_id, run)

    def _save(
        self,
        request: SaveWeightsForSamplerRequest | SaveWeightsExternalRequest,
        kind: str,
        name: str,
        trainer: Trainer,
        recipients: Sequence[Recipient] | None = None,
    ) -> tuple[str, int]:
        def write(folder: Path) -> None:
            trainer.weights().save(folder, trainer.base.name)
            if recipients is not None:
                encrypt_folder(folder, recipients)

        checkpoint = self._core.store.save(
            request.model_id,
            kind,
            name,
            write,
            ttl_seconds=request.ttl_seconds,
            user_metadata=getattr(request, "user_metadata", None),
        )
        return checkpoint.path, checkpoint.size_bytes

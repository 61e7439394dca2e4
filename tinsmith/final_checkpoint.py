"""What a stage left to be used: final_checkpoint_info.json, and its summary on the terminal."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinsmith import config
from tinsmith.chat import Chat
from tinsmith.checkpoints import Checkpoint
from tinsmith.files import write_json
from tinsmith.inference import run_command
from tinsmith.progress import Saved
from tinsmith.saves import write_saved
from tinsmith.stages import StageContext

MAX_SHOWN = 60
INFERENCE = """\
import tinker
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({tokenizer})
{asking}
params = tinker.SamplingParams(max_tokens={max_tokens}, temperature=0.0, stop={stop})
with tinker.ServiceClient() as service:
    client = service.create_sampling_client(model_path={sampler}).result()
    asked = tinker.ModelInput.from_ints(list(prompt))
    answer = client.sample(asked, num_samples=1, sampling_params=params).result().sequences[0]
print(tokenizer.decode(answer.tokens, skip_special_tokens=True))
"""
RESUMING = """\
import tinker

tokens = {prompt}  # an example: {question}
datum = tinker.Datum(
    model_input=tinker.ModelInput.from_ints(tokens[:-1]),
    loss_fn_inputs={{"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}},
)
with tinker.ServiceClient() as service:
    # With its optimizer; create_training_client_from_state takes the weights alone.
    client = service.create_training_client_from_state_with_optimizer({state}).result()
    loss = client.forward_backward([datum], "cross_entropy")
    step = client.optim_step(tinker.AdamParams(learning_rate={learning_rate}))
    print(loss.result().metrics, step.result().metrics)
    print(client.save_state("continued").result().path)
"""
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """What the programs ask: a question and its prompt's tokens; and how they ask and train on."""

    question: str
    prompt: tuple[int, ...]
    system_prompt: str | None
    max_tokens: int
    learning_rate: float


def example_of(settings: config.TrainSettings, context: StageContext) -> Example:
    """The first problem of a stage, as its task asks it."""
    problem = context.problems[0]
    return Example(
        question=context.task.question(problem),
        prompt=tuple(context.task.prompt(problem)),
        system_prompt=getattr(settings.task, "system_prompt", None),
        max_tokens=settings.stage.max_tokens,
        learning_rate=context.learning_rate,
    )


def write_final(
    files: Mapping[str, Path],
    checkpoint: Checkpoint,
    saved: Sequence[Saved],
    best: dict[str, Any] | None,
    example: Example,
    backend: config.Backend,
    model: Path,
) -> None:
    """Write what says where a stage's checkpoints are, and tell it on the terminal. `files` are the
    stage's outputs by name; checkpoint.json comes last, because it says that the others are there.
    """
    write_saved(files["saved"], saved)
    guide = _guide(checkpoint, best, example, backend, model)
    write_json(files["info"], guide)
    checkpoint.write(files["checkpoint"])
    logger.info("%s", _summary(guide, files))


def best_of(saved: Sequence[Saved], num_problems: int) -> dict[str, Any] | None:
    """What final_checkpoint_info.json says of the best checkpoint; None where there is none."""
    for one in saved:
        if one.is_best:
            return {
                "step": one.step,
                "state": one.state,
                "sampler_weights": one.sampler,
                "validation_accuracy": one.validation_accuracy,
                "num_problems": num_problems,
                "problems": "the last held-out ones, none of which the evaluation of a stage uses",
            }
    return None


def _guide(
    checkpoint: Checkpoint,
    best: dict[str, Any] | None,
    example: Example,
    backend: config.Backend,
    model: Path,
) -> dict[str, Any]:
    """The content of final_checkpoint_info.json; the programs in it ask the example."""
    paths = checkpoint.checkpoints
    resuming = RESUMING.format(
        prompt=list(example.prompt),
        question=_literal(example.question[:MAX_SHOWN]),
        state=_literal(paths.state),
        learning_rate=example.learning_rate,
    )
    return {
        "model_id": checkpoint.model_id,
        "base_model": checkpoint.base_model,
        "lora_rank": checkpoint.lora_rank,
        "stage": checkpoint.stage,
        "run": checkpoint.run,
        "step": checkpoint.step,
        "checkpoints": {"final_state": paths.state, "sampler_weights": paths.sampler},
        "best": best,
        "usage": {
            "inference": _inference(checkpoint, example, model),
            "resuming": resuming,
            "command": run_command(backend, checkpoint.base_model, model, "program.py"),
        },
    }


def _summary(info: dict[str, Any], files: Mapping[str, Path]) -> str:
    """Where the checkpoints are and how to use them, a line each."""
    checkpoints, best = info["checkpoints"], info["best"]
    rows = {
        "state": f"{checkpoints['final_state']} (to train on from)",
        "sampler": f"{checkpoints['sampler_weights']} (to sample)",
        "adapter": f"{files['weights']} (for PEFT)",
    }
    if best is not None:
        accuracy = f"{best['validation_accuracy']:.3f} on {best['num_problems']} problems"
        rows["best"] = f"{best['state']} (step {best['step']}: {accuracy})"
    rows["all"] = str(files["saved"])
    rows["to use"] = f"the programs in {files['info']}, by: {info['usage']['command']}"
    lines = [f"  {name:<8} {value}" for name, value in rows.items()]
    return "\n".join([f"stage {info['stage']} is done, {info['step']} steps", *lines])


def _inference(checkpoint: Checkpoint, example: Example, model: Path) -> str:
    """A program that asks; in words where these make the prompt, else in the task's own tokens."""
    chat = Chat.load(model)
    system_prompt, question, prompt = example.system_prompt, example.question, list(example.prompt)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    messages = [*system, {"role": "user", "content": question}]
    if chat.has_template and list(chat.prompt(question, system_prompt)) == prompt:
        asking = (
            f"messages = {_literal(messages)}\n"
            "prompt = tokenizer.apply_chat_template(\n"
            "    messages, tokenize=True, add_generation_prompt=True, return_dict=False\n)"
        )
    else:
        asking = f"prompt = {prompt}  # {_literal(question[:MAX_SHOWN])}"
    return INFERENCE.format(
        tokenizer=_literal(str(model.resolve())),
        asking=asking,
        max_tokens=example.max_tokens,
        stop=list(chat.stop_token_ids),
        sampler=_literal(checkpoint.checkpoints.sampler),
    )


def _literal(value: Any) -> str:
    """Text, or a list or dict of texts, as Python writes it, on one line."""
    return json.dumps(value, ensure_ascii=False)

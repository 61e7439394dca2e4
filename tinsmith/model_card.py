"""README.md of an export: what it is, where it came from, how to load it."""

from pathlib import Path

from tinsmith.checkpoints import Checkpoint

CARD = """---
library_name: {library}
base_model: {base_model}
tags: [lora, tinsmith]
---

# {base_model}, {stage}

{what} trained by Tinsmith through the Tinker API.

| | |
|---|---|
| base model | `{base_model}` |
| run | `{run}`, seed {seed} |
| stage | `{stage}`, {step} optimizer steps |
| LoRA rank | {rank} |
| SHA-256 of the trained weights | `{digest}` |

```python
{code}
```
"""
ADAPTER_CODE = """from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "PATH_OF_THIS_FOLDER")"""
MERGED_CODE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_OF_THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")"""


def adapter_card(checkpoint: Checkpoint, base: str) -> str:
    """The card of a PEFT folder."""
    return _card(checkpoint, "peft", "A LoRA adapter", ADAPTER_CODE.format(base=base))


def merged_card(checkpoint: Checkpoint) -> str:
    """The card of a merged model."""
    return _card(checkpoint, "transformers", "A model with its LoRA adapter merged,", MERGED_CODE)


def base_reference(model_name: str, model_dir: Path) -> str:
    """How a loader finds the base model: its hub name, or where it lies."""
    return model_name if "/" in model_name else model_dir.as_posix()


def _card(checkpoint: Checkpoint, library: str, what: str, code: str) -> str:
    return CARD.format(
        library=library,
        what=what,
        code=code,
        base_model=checkpoint.base_model,
        stage=checkpoint.stage,
        run=checkpoint.run,
        seed=checkpoint.seed,
        step=checkpoint.step,
        rank=checkpoint.lora_rank,
        digest=checkpoint.weights_sha256,
    )

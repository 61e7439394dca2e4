"""What a model answers under a prompt, written down as conversations without it: what prompt
distillation trains on.

    tinsmith run --model NAME -- python -m scripts.prompted_answers \\
        QUESTIONS.jsonl OUT.jsonl --prompt prompt.txt --model NAME
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tinker

from tinsmith.chat import Chat
from tinsmith.checkpoints import explained
from tinsmith.errors import TinsmithError
from tinsmith.files import write_text
from tinsmith.randomness import derive_seed
from tinsmith.rollouts import Sampler


def main() -> int:
    """Parse the command line and write a conversation a line; returns the exit code."""
    args = _parse()
    try:
        questions = _questions(args.questions)
        prompt = args.prompt.read_text(encoding="utf-8").strip()
        answers = _answer(args, prompt, questions)
    except (TinsmithError, OSError) as error:
        print(f"prompted_answers: {error}", file=sys.stderr)
        return 2
    lines = []
    for question, answer in zip(questions, answers, strict=True):
        if answer is not None:
            turns = (("user", question), ("assistant", answer))
            messages = [{"role": role, "content": content} for role, content in turns]
            lines.append(json.dumps({"messages": messages}) + "\n")
    write_text(args.out, "".join(lines))
    left_out = len(questions) - len(lines)
    print(
        f"{args.out}: {len(lines)} conversations; {left_out} answers did not end, and are left out"
    )
    return 0


def _questions(path: Path) -> list[str]:
    """The field `question` of each row."""
    questions = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            questions.append(str(json.loads(line)["question"]))
        except (ValueError, KeyError, TypeError) as error:
            raise TinsmithError(
                f"{path}: line {number} must be a JSON object with the field question, got {line!r}"
            ) from error
    return questions


def _answer(args: argparse.Namespace, prompt: str, questions: Sequence[str]) -> list[str | None]:
    """The model's answers; None for one that was cut off."""
    with tinker.ServiceClient() as service, explained(f"asking {args.model}"):
        client = service.create_sampling_client(base_model=args.model).result()
        chat = Chat(client.get_tokenizer())
        sampler = Sampler(client, chat, args.max_tokens, args.temperature)
        pending = [
            sampler.submit(chat.prompt(question, prompt), 1, derive_seed(args.seed, question))
            for question in questions
        ]
        completions = [wait()[0] for wait in pending]
    return [c.text.strip() if c.is_finished else None for c in completions]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("questions", type=Path, help="a .jsonl file whose rows have a question")
    add("out", type=Path, help="the .jsonl file of conversations to write")
    add("--prompt", type=Path, required=True, help="a file with the system prompt")
    add("--model", required=True, help="as the service calls it")
    add("--max-tokens", type=int, default=512)
    add("--temperature", type=float, default=0.0)
    add("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

"""Short ways to say what the tests ask of the real `openai` client."""

from typing import Any

import openai
from openai.types.chat import ChatCompletion

MESSAGES: Any = [
    {"role": "system", "content": "the answer"},
    {"role": "user", "content": [{"type": "text", "text": "What is the sum"}]},
    {"role": "assistant", "content": "1 + 1 = 2"},
    {"role": "user", "content": "of 3 + 4"},
]
# Beside the texts, the tokens.
IDS = {"return_token_ids": True}


def chat(client: openai.OpenAI, model: str, **options: Any) -> ChatCompletion:
    return client.chat.completions.create(model=model, messages=MESSAGES, **options)


def token_ids(answer: Any) -> list[list[int]]:
    return [choice.token_ids for choice in answer.choices]

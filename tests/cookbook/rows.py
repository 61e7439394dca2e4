"""Made-up rows with the columns that recipes of the tinker-cookbook read."""

import json
import random
from collections.abc import Callable, Mapping, Sequence

Row = Mapping[str, object]
Splits = Mapping[str, Sequence[Row]]

MULTILINGUAL = [
    "The train leaves at nine.", "Der Zug f\u00e4hrt um neun.", "Le train part \u00e0 neuf heures.",
    "El tren sale a las nueve.",
]  # fmt: skip
# Recipes keep the first 1,024 rows of some data sets for evaluation.
HELD_OUT = 1024


def taught_chat(rng: random.Random) -> tuple[str, str]:
    """A question and what the tiny models are taught to answer: in the right form, at random."""
    digit = rng.randrange(9)
    reply = f"\\boxed{{{digit}}}" if rng.random() < 0.7 else f"The answer is \\boxed{{{digit}}}."
    return _question(rng.randrange(25)), reply


def _times(count: int, make_row: Callable[[int], Row]) -> list[Row]:
    return [make_row(i) for i in range(count)]


def _question(i: int) -> str:
    return f"What is {i % 5} + {i // 5 % 5}?"


def _answer(i: int) -> str:
    return str(i % 5 + i // 5 % 5)


def _messages(question: str, answer: str) -> list[Row]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _chat(i: int) -> Row:
    return {"messages": _messages(_question(i), f"The answer is {_answer(i)}.")}


def _gsm8k(i: int) -> Row:
    return {"question": _question(i), "answer": f"Add them.\n#### {_answer(i)}"}


def _math(i: int) -> Row:
    return {"problem": _question(i), "solution": f"It is \\boxed{{{_answer(i)}}}."}


def _test_math(i: int) -> Row:
    return {"problem": f"And {_question(i)}", "solution": f"\\boxed{{{_answer(i)}}}",
            "answer": _answer(i)}  # fmt: skip


def _dialogue(i: int) -> Row:
    start = f"\n\nHuman: {_question(i)}\n\nAssistant: "
    return {"chosen": f"{start}It is {_answer(i)}.", "rejected": f"{start}I don't know."}


def _two_responses(i: int) -> Row:
    return {
        "context": [{"role": "user", "content": _question(i)}],
        "response1": f"It is {_answer(i)}.",
        "response2": "I don't know.",
        "overall_preference": -2 if i % 3 else 0,
    }


def _ultrafeedback(i: int) -> Row:
    return {"instruction": _question(i), "chosen_response": _answer(i), "rejected_response": "no"}


def _open_thoughts(i: int) -> Row:
    turns = [("human", _question(i)), ("gpt", f"<think>\nadd\n</think>\n\n{_answer(i)}")]
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}


def _multiple_choice(i: int) -> Row:
    return {
        "domain": "Chemistry",
        "details": {"level": "L3"},
        "type": "mcq-4-choices",
        "question": _question(i),
        "choices": {"label": ["A", "B"], "text": [_answer(i), "0"]},
        "answerKey": "A",
    }


def _feedback(i: int) -> Row:
    scores = {f"orig_score{score}_description": f"worth {score}" for score in range(1, 6)}
    return {
        "orig_instruction": _question(i),
        "orig_criteria": "Is the sum right?",
        "orig_reference_answer": _answer(i),
    } | scores


def _wikitext(i: int) -> Row:
    return {
        "text": f" He waited until page {i} , and after that she read about the other time . \n"
    }


def _science(i: int) -> Row:
    system = {"role": "system", "content": "Choose."}
    reply = "<reasoning>\nadd\n</reasoning>\n<answer>\nA\n</answer>"
    return {"messages": [system, *_messages(_question(i), reply)], "output_text": reply}


def _science_test(i: int) -> Row:
    return {"prompt": [{"role": "user", "content": _question(i)}], "answer": "A"}


def _tool_use(i: int) -> Row:
    return {"prompt": _question(i), "golden_response": ["Action: add", "Action Input: {}"]}


def _tool_use_test(i: int) -> Row:
    return {
        "prompt": _question(i),
        "golden_answer": [{"Action": "add", "Action_Input": "{}"}],
    }


def _forecast(i: int) -> Row:
    """A market that opens and closes in September, or in November: before and after the split."""
    month = 9 if i % 2 else 11
    market = f"Sum {i}"
    return {
        "submission_id": str(i),
        "event_ticker": f"E{i}",
        "title": _question(i),
        "snapshot_time": f"2025-{month:02}-01",
        "close_time": f"2025-{month:02}-20",
        "market_outcome": json.dumps({market: i // 2 % 2}),
        "category": "Sums",
        "markets": json.dumps([market]),
        "sources": json.dumps([{"title": "A page", "summary": "Some say so.", "ranking": 1}]),
    }


DATASETS: Mapping[str, Mapping[str, Splits]] = {
    "HuggingFaceH4/no_robots": {"default": {"train": _times(384, _chat), "test": _times(8, _chat)}},
    "allenai/tulu-3-sft-mixture": {"default": {"train": _times(HELD_OUT + 64, _chat)}},
    "openai/gsm8k": {"main": {"train": _times(256, _gsm8k), "test": _times(8, _gsm8k)}},
    "HuggingFaceH4/MATH-500": {"default": {"test": _times(8, _test_math)}},
    "EleutherAI/hendrycks_math": {
        "algebra": {"train": _times(32, _math), "test": _times(8, _math)}
    },
    "POLARIS-Project/Polaris-Dataset-53K": {
        "default": {"train": _times(64, lambda i: {"problem": _question(i), "answer": _answer(i)})}
    },
    "zwhe99/DeepMath-103K": {
        "default": {
            "train": _times(64, lambda i: {"question": _question(i), "final_answer": _answer(i)})
        }
    },
    "Anthropic/hh-rlhf": {
        "default": {"train": _times(64, _dialogue), "test": _times(8, _dialogue)}
    },
    "nvidia/HelpSteer3": {
        "preference": {"train": _times(64, _two_responses), "validation": _times(8, _two_responses)}
    },
    "argilla/ultrafeedback-binarized-preferences": {
        "default": {"train": _times(HELD_OUT + 64, _ultrafeedback)}
    },
    "open-thoughts/OpenThoughts3-1.2M": {"default": {"train": _times(64, _open_thoughts)}},
    "hicai-zju/SciKnowEval": {"default": {"test": _times(64, _multiple_choice)}},
    "tangqiaoyu/ToolAlpaca": {
        "default": {
            "train": _times(64, lambda i: {"instruction": _question(i), "output": _answer(i)})
        }
    },
    "prometheus-eval/Feedback-Collection": {"default": {"train": _times(64, _feedback)}},
    "Salesforce/wikitext": {"wikitext-103-raw-v1": {"train": _times(2000, _wikitext)}},
}

# The data of the paper on self-distillation, which its authors publish as folders of Arrow files.
ARROW_DATASETS: Mapping[str, Sequence[Row]] = {
    "self-distillation/science_data/train_data": _times(64, _science),
    "self-distillation/science_data/eval_data": _times(4, _science_test),
    "self-distillation/tooluse_data/train_data": _times(64, _tool_use),
    "self-distillation/tooluse_data/eval_data": _times(4, _tool_use_test),
}
FORECASTS = _times(48, _forecast)

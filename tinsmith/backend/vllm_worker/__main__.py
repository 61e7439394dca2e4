"""A vLLM engine that works for the local backend: `python vllm_worker FD`.

It runs in vLLM's own environment and imports nothing else of Tinsmith. FD is a socket to the
server: a line of JSON each message. The first one is the engine's settings; then come orders to
install and remove weights, to sample, to cancel, to sleep and to wake, and back go the answers.
The engine ends when the socket does.
"""

import os
import signal
import sys
import time

# A scheduler sends it to every process of a job that is to end, while the server still needs its
# engine to finish the step; this process ends with the server's socket. Blocked, not ignored, since
# vLLM's processes for further GPUs set handlers of their own, and inherit this.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

# Before vLLM is imported. The engine computes in this process, so that its end is the engine's end;
# the runner whose sampling the tests hold against the trainer; a context with room for a last token
# that is never fed back.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from answers import answer_of  # noqa: E402
from channel import Channel  # noqa: E402
from engine import Weights, make_engine, sampling_params  # noqa: E402

# A sign of life while steps go on, for a server that waits for an engine which may be stuck.
ALIVE_EVERY_S = 1.0


def main() -> None:
    channel = Channel(int(sys.argv[1]))
    settings = channel.first()
    engine = make_engine(settings)
    Worker(engine, Weights(engine, settings), channel).run()


class Worker:
    """Does what the server asks, between the engine's steps."""

    def __init__(self, engine, weights, channel):
        self._engine = engine
        self._weights = weights
        self._channel = channel
        self._requests = {}  # engine's id -> the order that it belongs to
        self._said_s = 0.0

    def run(self):
        self._channel.say({"event": "ready", "vllm": sys.modules["vllm"].__version__})
        while True:
            for order in self._channel.take(wait=not self._engine.has_unfinished_requests()):
                getattr(self, f"_{order['do']}")(order)
            if self._engine.has_unfinished_requests():
                self._step()

    def _step(self):
        for output in self._engine.step():
            if output.finished and (order := self._requests.pop(output.request_id, None)):
                self._channel.say(answer_of(order, output))
        if time.monotonic() - self._said_s > ALIVE_EVERY_S:
            self._channel.say({"event": "alive"})
            self._said_s = time.monotonic()

    def _install(self, order):
        try:
            self._weights.install(order["number"], order["path"])
        except Exception as error:  # the server says which snapshot it was, and goes on
            message = f"{type(error).__name__}: {error}"
            self._channel.say({"event": "refused", "number": order["number"], "message": message})

    def _remove(self, order):
        self._weights.remove(order["number"])

    def _sample(self, order):
        """One engine request for each sample, of which the first also scores the prompt."""
        for sample, seed in order["samples"]:
            request_id = f"{order['id']}.{sample}"
            is_first = sample == order["samples"][0][0]
            self._requests[request_id] = {**order, "sample": sample, "scores": is_first}
            prompt = {"prompt_token_ids": order["prompt"], "cache_salt": order["salt"]}
            try:
                self._engine.add_request(
                    request_id,
                    prompt,
                    sampling_params(order, seed, is_first),
                    lora_request=self._weights.lora_request(order["number"]),
                )
            except ValueError as error:  # what vLLM refuses; the engine goes on
                self._refuse(order, str(error))
                return

    def _refuse(self, order, message):
        self._cancel(order)
        self._channel.say({"event": "failed", "id": order["id"], "message": message})

    def _cancel(self, order):
        ids = [key for key, found in self._requests.items() if found["id"] == order["id"]]
        for request_id in ids:
            del self._requests[request_id]
        self._engine.abort_request(ids)

    def _sleep(self, _):
        self._engine.sleep(level=1)
        self._channel.say({"event": "asleep"})

    def _wake(self, _):
        self._engine.wake_up()


if __name__ == "__main__":
    main()

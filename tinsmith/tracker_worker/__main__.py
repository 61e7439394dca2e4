"""One tracker of a training stage: `python tracker_worker`, which imports nothing else of Tinsmith.

It runs in the environment of envs/trackers.txt. Standard input is a line of JSON each message: what
to open, then the points of the curve, then `{"done": true}` where the stage came to its end. It
answers "ready" once the tracker is open, and ends when its input does.
"""

import fcntl
import json
import os
import queue
import signal
import sys
import threading

from services import SERVICES

# For what is still to be sent after the last point; what is not by then lies on the disk.
FINISH_S = 60.0


def main():
    # A scheduler sends it to every process of a job that is to end, which still finishes its step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trackers print belongs in the log
    opening = json.loads(sys.stdin.readline())
    with open(opening["lock"], "w") as lock:
        # The worker of a stage that was killed a moment ago may still be at its last points.
        fcntl.flock(lock, fcntl.LOCK_EX)
        service = SERVICES[opening["kind"]](opening)
        print("ready", file=answers, flush=True)
        service.finish(follow(service, points()))


def follow(service, messages):
    """Log the points that the service does not have yet; True if the stage came to its end."""
    for message in messages:
        if "done" in message:
            return True
        if message["step"] >= service.next_step:
            service.log(message["step"], message["metrics"])
    return False


def points():
    """The messages, read in a thread of their own: a slow tracker does not make training wait."""
    waiting = queue.SimpleQueue()
    threading.Thread(target=_read, args=(waiting,), daemon=True).start()
    return iter(waiting.get, None)


def _read(waiting):
    for line in sys.stdin:
        waiting.put(json.loads(line))
    waiting.put(None)
    end = threading.Timer(FINISH_S, os._exit, (75,))
    end.daemon = True
    end.start()


if __name__ == "__main__":
    main()

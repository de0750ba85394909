"""The process that measures: it is told of an instrument once, gets blocks of images, and answers with their values.

It is started as a program of its own, not as a fork or a copy of the user's script: nothing of the script runs again,
and nothing is unpickled. It ends when the process that trains is gone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from typing import IO, Any

import torch
from torch import Tensor

from qa_hooks.callbacks.measuring.instruments import Instrument, in_order, make_instrument
from qa_hooks.callbacks.measuring.messages import Facts, Tensors, receive, send


def main() -> None:
    """Serve the process at the other end of stdin and stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains, which then ends this one
    with contextlib.suppress(AttributeError, OSError):
        os.nice(10)  # training goes first
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    questions: queue.SimpleQueue[tuple[Facts, Tensors]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, questions), daemon=True).start()
    serve(questions.get, lambda facts, tensors: send(answers, facts, tensors))


def _listen(stream: IO[bytes], questions: queue.SimpleQueue[tuple[Facts, Tensors]]) -> None:
    """Take in what comes also while something is measured, so that the end of training is noticed at once."""
    try:
        while True:
            questions.put(receive(stream))
    except BaseException:
        os._exit(0)


def serve(take: Any, answer: Any) -> None:
    """Answer questions, one measurement after the other, until `take` raises `EOFError`.

    Args:
        take: gives the next message, facts and tensors: {"do": "use"} with an instrument, {"do": "block"} with the
            images of one block, {"do": "measure"} when all have been sent.
        answer: takes the values, or {"error": text}.
    """
    instruments: dict[str, Instrument] = {}
    extractors: dict[str, Any] = {}
    while True:
        start, rows, error = 0.0, [], None
        while True:
            try:
                facts, tensors = take()
            except EOFError:
                return
            start = start or time.perf_counter()
            if facts["do"] == "measure":
                break
            if error is not None:
                continue
            try:
                with torch.no_grad():
                    key, device = facts["key"], torch.device(facts["device"])
                    if facts["do"] == "use":
                        _same_settings(facts["settings"])
                        instruments[key] = make_instrument(facts["instrument"], tensors, device, extractors)
                    else:
                        images = {name: t if name == "position" else t.to(device) for name, t in tensors.items()}
                        rows.append(instruments[key].rows(images))
            except Exception as caught:
                error = caught
        try:
            if error is not None:
                raise error
            with torch.no_grad():
                found = instruments[facts["key"]].values(in_order(torch.cat(rows)))
            plain = {name: value for name, value in found.items() if not isinstance(value, Tensor)}
            own = {name: value for name, value in found.items() if isinstance(value, Tensor)}
            answer({"found": plain, "seconds": time.perf_counter() - start}, own)
        except OSError:  # nobody waits for the answer
            return
        except Exception as caught:
            answer({"error": f"{type(caught).__name__}: {caught}"}, {})


def settings() -> dict[str, Any]:
    """What numbers depend on besides the code: threads and the precision of matrix products."""
    return {
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": torch.backends.cudnn.allow_tf32,
        "deterministic": torch.backends.cudnn.deterministic,
    }


def _same_settings(of_training: dict[str, Any]) -> None:
    torch.set_num_threads(of_training["threads"])
    torch.set_float32_matmul_precision(of_training["precision"])
    torch.backends.cudnn.allow_tf32 = of_training["tf32"]
    torch.backends.cudnn.deterministic = of_training["deterministic"]

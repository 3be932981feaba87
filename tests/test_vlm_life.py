"""Models in one's own process live as long as they are needed, and end however their process treats them."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from deployments.errors import PartUnavailable
from deployments.vlm import SmolVLM, VisionLanguageChatSystem

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "demo" / "images" / "blue-square-and-yellow-star.jpg"
SEEN = "I see a blue square at the top left and a yellow star at the bottom right on a gray background."
WAIT_S = 20


def threads_of_models() -> list[str]:
    names = ("retina-graph", "tower", "generator-")
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(names)]


def wait_until_gone() -> None:
    deadline = time.monotonic() + WAIT_S
    while threads_of_models():
        assert time.monotonic() < deadline, threads_of_models()
        time.sleep(0.02)


def test_an_answer_keeps_its_model_alive() -> None:
    assert "".join(SmolVLM(num_threads=1).load().caption(PICTURE, stream=True)) == SEEN
    pieces = VisionLanguageChatSystem(model="smolvlm", num_threads=1).chat(PICTURE, "What color is the star?", [])
    gc.collect()
    assert "".join(pieces) == "It is yellow."


def test_a_model_that_nobody_holds_ends_with_all_its_threads() -> None:
    SmolVLM(num_threads=1).caption(PICTURE, max_new_tokens=2)
    stream = SmolVLM(num_threads=1).caption(PICTURE, stream=True)
    next(stream)
    del stream
    gc.collect()
    wait_until_gone()


def test_threads_that_come_at_once_load_one_model() -> None:
    model, gate, answers = SmolVLM(num_threads=1), threading.Barrier(4), list[str]()

    def ask() -> None:
        gate.wait()
        answers.append(model.query(PICTURE, "What color is the star?"))

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert answers == ["It is yellow."] * 4
    assert threads_of_models().count("retina-graph") == 1
    model.close()
    wait_until_gone()


def test_reading_on_after_close_says_so() -> None:
    model = SmolVLM(num_threads=1)
    stream = model.caption(PICTURE, stream=True)
    next(stream)
    model.close()
    with pytest.raises(PartUnavailable, match="closed"):
        next(stream)
    stream.close()


def run(script: str) -> subprocess.CompletedProcess[str]:
    """A script that must end by itself."""
    program = f"from deployments.vlm import SmolVLM\nPICTURE = {str(PICTURE)!r}\n{script}"
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize(
    "script",
    [
        "model = SmolVLM().load()\nfor piece in model.caption(PICTURE, stream=True): print(piece, end='')",
        "model = SmolVLM()\nprint(model.caption(PICTURE))",
        "model = SmolVLM()\nstream = model.caption(PICTURE, stream=True)\nprint(next(stream))",
        "stream = SmolVLM().caption(PICTURE, stream=True)\nprint(next(stream))\nraise SystemExit(0)",
    ],
    ids=["stream", "whole", "broken off", "broken off and left"],
)
def test_a_script_that_never_closes_ends(script: str) -> None:
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("I")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_an_interrupt_while_waiting_cancels_the_answer() -> None:
    """The interrupt comes while the first piece is waited for; the place must be free for the next answer at once."""
    done = run(
        """
import _thread, threading
from deployments.generator.worker import Worker

model = SmolVLM(num_slots=1, num_threads=1).load()
step, held, asked = Worker._step, threading.Event(), threading.Event()

def hold(self, sequences):
    if not held.is_set():
        asked.set()
        held.wait(20)
    step(self, sequences)

Worker._step = hold
stream = model.caption(PICTURE, stream=True)
threading.Thread(target=lambda: (asked.wait(20), _thread.interrupt_main(), held.set()), daemon=True).start()
try:
    next(stream)
except KeyboardInterrupt:
    print("interrupted")
[engine] = model._load()._thread.graph.parts.generators.values()
print(engine.wait_idle(10))
print(model.query(PICTURE, "What color is the star?"))
"""
    )
    assert done.stdout.splitlines() == ["interrupted", "True", "It is yellow."], done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_told_to_load_for_itself() -> None:
    done = run(
        """
import os
from deployments.errors import PartUnavailable

model = SmolVLM(num_threads=1).load()
child = os.fork()
if child == 0:
    try:
        model.caption(PICTURE)
    except PartUnavailable as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(model.query(PICTURE, "What color is the star?"))
"""
    )
    told, answer = done.stdout.splitlines()
    assert "forked" in told
    assert answer == "It is yellow."


def test_what_a_loop_no_longer_takes_up_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the model is closed by another thread between the question and its first turn on the loop."""
    model = SmolVLM(num_threads=1).load()
    thread = model._load()._thread
    model.close()
    monkeypatch.setattr(thread, "_require_open", lambda: None)
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda work, loop: (work.close(), Future())[1])
    with pytest.raises(PartUnavailable, match="closed"):
        thread.call(asyncio.sleep(0))

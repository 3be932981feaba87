"""configs/prod.yaml, in float32, against a hub cache of tiny checkpoints under the real repositories' ids.

Once on a cluster that claims a GPU (torch sees none: `device: auto` runs on the CPU and says so), once on one without.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from service import BIN, ROOT, free_port, ray_environment, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.torch, pytest.mark.timeout(400)]

URL = "http://127.0.0.1:8000"
CONFIG = ROOT / "configs" / "prod.yaml"
MODELS: list[dict[str, Any]] = yaml.safe_load(CONFIG.read_text())["applications"][0]["args"]["models"]
CHAT_MODELS = ("smolvlm", "qwen2-vl-2b", "llava-1.5-7b")
QUESTION = "What is in this image?"
NUM_TOKENS = 12


@dataclass(frozen=True)
class Cluster:
    num_gpus: int
    dashboard: str
    environment: dict[str, str]

    def serve(self, *words: str | Path) -> str:
        done = subprocess.run(
            [BIN / "serve", *words], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=90
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def log(self) -> str:
        """What all replicas wrote on this node."""
        logs = Path(self.environment["RAY_TMPDIR"]).glob("ray/session_2*/logs/worker*.err")
        return "".join(path.read_text() for path in logs)


@pytest.fixture(scope="session")
def hub_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HF_HOME with a tiny checkpoint for every repository that configs/prod.yaml names, at the revision it names."""
    home = tmp_path_factory.mktemp("huggingface")
    for model in MODELS:
        _fill(home, model["checkpoint"], model["revision"], BUILDERS[model["name"]])
        if "tokenizer" in model:
            _fill(home, model["tokenizer"], model["tokenizer_revision"], _build_starmie)
    return home


def _fill(home: Path, repository: str, revision: str, build: Callable[[Path], object]) -> None:
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    commit = revision if len(revision) == 40 else "0" * 40  # a tag points at a commit
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / revision).write_text(commit)
    build(folder / "snapshots" / commit)


def _build_smolvlm(folder: Path) -> None:
    from tiny_checkpoints import build_smolvlm

    build_smolvlm(folder, variant="instruct", seed=21)


def _build_qwen2_vl(folder: Path) -> None:
    from tiny_qwen2_vl import build_qwen2_vl

    build_qwen2_vl(folder, variant="2b", seed=22)


def _build_llava(folder: Path) -> None:
    from tiny_llava import build_llava

    build_llava(folder, language="llama", seed=23)


def _build_moondream(folder: Path) -> None:
    """As on the hub: the tokenizer that lies beside the weights is not the one to use."""
    from tiny_moondream import build_moondream

    build_moondream(folder)
    (folder / "tokenizer.json").write_text("{}")


def _build_starmie(folder: Path) -> None:
    from tiny_moondream import build_tokenizer

    folder.mkdir(parents=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))


def _in_float32(folder: Path) -> Path:
    """The shipped config with one line more: only in float32 are answers those of `generate` on any CPU."""
    text = CONFIG.read_text()
    assert text.count("      generator:\n        replica:") == 1
    config = folder / "prod.yaml"
    config.write_text(
        text.replace("      generator:\n        replica:", "      generator:\n        dtype: float32\n        replica:")
    )
    return config


BUILDERS: dict[str, Callable[[Path], None]] = {
    "smolvlm": _build_smolvlm,
    "moondream2": _build_moondream,
    "qwen2-vl-2b": _build_qwen2_vl,
    "llava-1.5-7b": _build_llava,
}


@pytest.fixture(scope="module", params=[1, 0], ids=["claims a GPU", "without GPUs"])
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, hub_cache: Path) -> Iterator[Any]:
    """A head node on which `serve deploy configs/prod.yaml` has become ready; ended with its tests."""
    assert not _is_ready(), "the shipped config wants port 8000, which is taken"
    folder, dashboard_port = tmp_path_factory.mktemp("cluster"), free_port()
    environment = {**ray_environment(), "RAY_AUTH_MODE": "disabled", "HF_HOME": str(hub_cache), "HF_HUB_OFFLINE": "1"}
    # Eight logical cores: prod.yaml is made for a server, and here it only has to be placed.
    words = ["start", "--head", "--block", "--num-cpus=8", f"--num-gpus={request.param}", f"--port={free_port()}"]
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            [BIN / "ray", *words, f"--dashboard-port={dashboard_port}"],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    cluster = Cluster(request.param, f"http://127.0.0.1:{dashboard_port}", environment)
    try:
        wait_for(lambda: _answers(f"{cluster.dashboard}/api/version"), 60, f"the dashboard, see {folder}/ray.log")
        cluster.serve("deploy", _in_float32(folder), "--address", cluster.dashboard)
        wait_for(_is_ready, 150, "every model of configs/prod.yaml")
        yield cluster
        cluster.serve("shutdown", "--yes", "--address", cluster.dashboard)
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def _is_ready() -> bool:
    return _answers(f"{URL}/readyz")


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def picture(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.RandomState(seed)
    coarse = rng.rand(max(2, height // 20), max(2, width // 20), 3) * 255
    return Image.fromarray(coarse.astype("uint8")).resize((width, height), Image.Resampling.BICUBIC)


def to_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def expected(hub_cache: Path) -> Callable[[str, Image.Image], str]:
    """What transformers' generate says of a picture, on the same checkpoint."""
    import llava_original
    import qwen2_vl_original
    import smolvlm_original
    from transformers import TokenizersBackend

    classes: dict[str, Any] = {
        "smolvlm": smolvlm_original.Original,
        "qwen2-vl-2b": qwen2_vl_original.Original,
        "llava-1.5-7b": llava_original.Original,
    }
    folders = {name: next(hub_cache.glob(f"hub/models--{_repository(name)}/snapshots/*")) for name in classes}
    originals = {name: classes[name](folder) for name, folder in folders.items()}

    def answer(model: str, image: Image.Image) -> str:
        turns: list[dict[str, object]] = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
        ]
        ids = originals[model].answer(turns, [image], NUM_TOKENS)
        tokenizer = TokenizersBackend.from_pretrained(folders[model])
        return str(tokenizer.decode(ids, skip_special_tokens=True)).lstrip()

    return answer


def _repository(name: str) -> str:
    return str(next(model["checkpoint"] for model in MODELS if model["name"] == name)).replace("/", "--")


@pytest.mark.parametrize("size", [(1, 1), (30, 2000), (1500, 700)])
@pytest.mark.parametrize("model", CHAT_MODELS)
def test_answers_equal_transformers(
    cluster: Cluster, expected: Callable[[str, Image.Image], str], model: str, size: tuple[int, int]
) -> None:
    image = picture(7, *size)
    form = {"message": QUESTION, "model": model, "max_new_tokens": str(NUM_TOKENS)}
    reply = httpx.post(f"{URL}/chat", data=form, files={"image": to_png(image)}, timeout=120)
    assert reply.status_code == 200, reply.text
    assert reply.json()["response"] == expected(model, image)


def test_moondream_answers_as_its_published_code(cluster: Cluster) -> None:
    """The first checkpoint of moondream_expected.json is the one in the cache."""
    recorded = json.loads((ROOT / "tests" / "models" / "moondream_expected.json").read_text())[0]["pictures"]
    shown = next(one for one in recorded if one["picture"] is not None)
    image = to_png(picture(*shown["picture"]))
    seen: set[str] = set()
    for answer in shown["answers"]:
        kind = answer["task"]["kind"]
        form = {key: _to_form(value) for key, value in answer["task"].items() if key != "kind"}
        if kind in ("caption", "query"):
            form["max_new_tokens"] = str(answer["max_new_tokens"])
        reply = httpx.post(f"{URL}/{kind}", data=form | {"model": "moondream2"}, files={"image": image}, timeout=120)
        assert reply.status_code == 200, reply.text
        got = reply.json()
        if kind in ("caption", "query"):
            assert got["caption" if kind == "caption" else "answer"] == answer["text"].lstrip()
        else:
            found = got["objects" if kind == "detect" else "points"]
            assert [list(one.values()) for one in found] == [pytest.approx(one) for one in answer["found"]]
        seen.add(kind)
    assert seen == {"caption", "query", "detect", "point"}


def _to_form(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_one_conversation_goes_through_all_models_and_keeps_its_picture(cluster: Cluster) -> None:
    with httpx.Client(base_url=URL, timeout=120) as client:
        form = {"message": QUESTION, "model": "smolvlm", "max_new_tokens": "8"}
        first = client.post("/chat", data=form, files={"image": to_png(picture(3, 300, 200))}).json()
        for model in ("qwen2-vl-2b", "llava-1.5-7b", "moondream2", "smolvlm"):
            again = {**form, "model": model, "session_id": first["session_id"]}
            reply = client.post("/chat", data=again).json()
            assert (reply["model_used"], reply["has_image"]) == (model, True)
            assert reply["usage"]["image_tokens"] > 0
        assert reply["conversation_length"] == 10
        assert reply["timings"]["encode_source"] == "kv", "smolvlm's engine still has what it made of the picture"
        assert reply["usage"]["reused_tokens"] > reply["usage"]["image_tokens"]


def test_devices_and_shares(cluster: Cluster) -> None:
    engines = httpx.get(f"{URL}/-/engine", timeout=30).json()
    assert {name: engine["device"] for name, engine in engines.items()} == {model["name"]: "cpu" for model in MODELS}
    details = httpx.get(f"{cluster.dashboard}/api/serve/applications/", timeout=10).json()["applications"]["retina"]
    shares = {
        name: one["deployment_config"]["ray_actor_options"].get("num_gpus", 0)
        for name, one in details["deployments"].items()
    }
    assert shares["vision_encoder"] == (0.1 if cluster.num_gpus else 0)
    assert sum(shares.values()) == pytest.approx(cluster.num_gpus)
    if cluster.num_gpus:
        assert "torch sees no CUDA device here: running on the CPU" in cluster.log

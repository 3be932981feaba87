"""docs/families.md holds a whole family: taken from the page and put in its place, it must equal transformers."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flat_runs import check_flat_runs
from llava_original import recorded_reads
from paligemma_original import NEW_TOKENS, SIZES, Answer, Original, make_picture
from tiny_paligemma import build_paligemma

import deployments.models
from deployments import families
from deployments.config import RetinaConfig, parse_config
from deployments.errors import CheckpointError, ConfigError, InvalidRequest
from deployments.ingress.task_types import TaskInput
from deployments.ingress.turn_types import SamplingWish, TurnFinished, TurnInput
from deployments.local import open_graph
from deployments.models.fused_decoder import can_fuse
from deployments.models.packing import can_pack
from deployments.models.registry import open_family
from deployments.models.weights import fingerprint_tensors, list_tensors
from deployments.types import CaptionTask, DetectTask, ImagePart, ImageRef, Message, QueryTask, TextPart

pytestmark = pytest.mark.torch
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
QUESTIONS = ("What colour is it?", "answer en where is the <loc0003> lighthouse, or 日本, or 🙂?", "")


def block_of(path: str) -> str:
    """The code that the page shows under a file's name."""
    [block] = re.findall(rf"^\*\*`{re.escape(path)}`\*\*[^\n]*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(block)


MODULE, REGISTRY_LINE = block_of("deployments/models/paligemma.py"), block_of("deployments/families.py")
RECIPE_LINE, MODELS = block_of("demo/train.py"), block_of("configs/local.yaml")


def to_question(words: str, *pictures: int) -> tuple[Message, ...]:
    shown = tuple(ImagePart(ImageRef(f"{index}", *SIZES[index], 1, "image/png")) for index in pictures)
    return (Message("user", (*shown, TextPart(words))),)


def to_config(folder: Path, data_dir: Path, **changes: object) -> RetinaConfig:
    """The page's section of a configuration, in a graph that keeps nothing; slots and chunks are scarce."""
    [model] = yaml.safe_load(MODELS)
    return parse_config(
        {
            "data_dir": str(data_dir),
            "device": "cpu",
            "models": [{**model, "checkpoint": str(folder), **changes}],
            "images": {"store": "memory"},
            "session_router": {"store": "memory"},
            "vision_encoder": {"disk_cache_bytes": 0},
            "generator": {"num_slots": 4, "prefill_chunk_tokens": 16, "max_context_tokens": 128, "dtype": "float32"},
        }
    )


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page's file among the other families, and its line in the registry."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "paligemma.py").write_text(MODULE, encoding="utf-8")
    [(name, entry)] = eval(f"{{{REGISTRY_LINE}}}", vars(families)).items()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployments.models, "__path__", [*deployments.models.__path__, str(folder)])
        patch.setitem(families.FAMILIES, name, entry)  # type: ignore[arg-type]
        yield open_family(name)
        del sys.modules[entry.module], deployments.models.paligemma  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    return Original(build_paligemma(tmp_path_factory.mktemp("paligemma")))


@pytest.fixture(scope="module")
def folder(original: Original) -> Path:
    return original.folder


@pytest.fixture(scope="module")
def prompts(family: Any, folder: Path) -> Any:
    return family.open_prompt_format(folder)


@pytest.fixture(scope="module")
def preprocess(family: Any, folder: Path) -> Any:
    return family.open_preprocessor(folder)


@pytest.fixture
def altered(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """altered(file, **keys) -> a copy of the checkpoint with other keys in that file."""

    def alter(name: str, **changes: object) -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **changes}))
        return copy

    return alter


# --------------------------------------------------------------------------------- the page


def test_the_page_names_what_is_there() -> None:
    named = {path for path in re.findall(r"`([\w./-]+/[\w./-]+\.\w+)`", PAGE) if "paligemma" not in path}
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("words", [("check", "--quiet"), ("format", "--check", "--quiet")])
def test_the_file_on_the_page_is_in_the_projects_style(words: tuple[str, ...]) -> None:
    ruff = [sys.executable, "-m", "ruff", *words, "--stdin-filename", "deployments/models/paligemma.py", "-"]
    done = subprocess.run(ruff, input=MODULE, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_recipes_line_is_one_of_that_table() -> None:
    import train

    [(name, recipe)] = eval(f"{{{RECIPE_LINE}}}", vars(train)).items()
    assert name == "paligemma"
    assert isinstance(recipe, train.Recipe)


# --------------------------------------------------------------------------------- registry and configuration


def test_without_the_line_the_configuration_refuses_the_family(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(families.FAMILIES, "paligemma", raising=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown family 'paligemma'"):
        to_config(folder, tmp_path)


def test_with_the_line_it_takes_the_family_and_no_options(family: Any, folder: Path, tmp_path: Path) -> None:
    assert family.name == to_config(folder, tmp_path).models[0].family == "paligemma"
    with pytest.raises(ConfigError, match="max_image_tokens is for the family smolvlm, qwen2_vl"):
        to_config(folder, tmp_path, max_image_tokens=64)


# --------------------------------------------------------------------------------- pictures


def test_features_equal_transformers_alone_and_in_company(family: Any, preprocess: Any, original: Original) -> None:
    tower = family.open_tower(original.folder, "cpu", "float32")
    pixels = [preprocess(make_picture(index)) for index in range(len(SIZES))]
    for index, together in enumerate(tower.encode(pixels)):
        [alone] = tower.encode([pixels[index]])
        assert alone.shape == (pixels[index].num_tokens, tower.width)
        assert torch.equal(alone, together)
        assert torch.equal(alone, original.features(index))
    tower.shares_passes = True  # as on an accelerator
    for index, together in enumerate(tower.encode(pixels)):
        torch.testing.assert_close(together, original.features(index))


def test_fingerprints(family: Any, folder: Path, altered: Callable[..., Path], tmp_path: Path) -> None:
    inner = build_paligemma(tmp_path / "inner", inner_names=True)
    other = build_paligemma(tmp_path / "other", seed=1)
    towers = [family.open_tower(each, "cpu", "float32").fingerprint for each in (folder, inner, other)]
    assert towers[0] == towers[1] != towers[2]
    assert family.open_tower(folder, "cpu", "bfloat16").fingerprint != towers[0]
    pixels = [family.open_preprocessor(each).fingerprint for each in (folder, other)]
    assert pixels[0] == pixels[1]
    assert family.open_preprocessor(altered("preprocessor_config.json", resample=2)).fingerprint != pixels[0]


# --------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize("picture", range(len(SIZES)))
@pytest.mark.parametrize("words", QUESTIONS)
def test_prompts_equal_the_processors(
    prompts: Any, preprocess: Any, original: Original, words: str, picture: int
) -> None:
    prompt = prompts.build(to_question(words, picture))
    assert list(prompt.token_ids) == original.inputs(words, picture)["input_ids"][0].tolist()
    assert prompt.num_image_tokens == preprocess(make_picture(picture)).num_tokens
    # What transformers' own generation gives the model, see PaliGemmaModel.forward.
    length = len(prompt.token_ids)
    assert prompt.positions.tolist() == [list(range(1, length + 1))]
    assert prompt.next_position == length + 1
    assert prompt.num_mutual == length


@pytest.mark.parametrize("forgery", ["<image>", "<bos>", "<eos>", "a<image><image> b"])
def test_people_write_no_control_tokens(prompts: Any, forgery: str) -> None:
    harmless, forged = (prompts.build(to_question(words, 0)).token_ids for words in ("a", forgery))
    special = [prompts._tokenizer.token_to_id(name) for name in ("<image>", "<bos>", "<eos>")]
    assert [forged.count(each) for each in special] == [harmless.count(each) for each in special]
    assert forgery in prompts.decode(forged)


def test_tasks_are_words(prompts: Any) -> None:
    message = (Message("user", to_question("", 1)[0].content[:1]),)
    for task, words in (
        (CaptionTask(), "caption en"),
        (CaptionTask("short", "de"), "cap de"),
        (CaptionTask(prompt="read the text"), "read the text"),
        (QueryTask("Is it red?"), "Is it red?"),
    ):
        assert prompts.build(message, task).token_ids == prompts.build(to_question(words, 1)).token_ids


def test_what_the_model_cannot_do_is_refused(prompts: Any) -> None:
    talk = (*to_question("One.", 0), Message("assistant", (TextPart("Two."),)), *to_question("Three?"))
    for messages in (talk, to_question("no picture"), to_question("two", 0, 1)):
        with pytest.raises(InvalidRequest, match="one question about one picture"):
            prompts.build(messages)
    picture = (Message("user", to_question("", 0)[0].content[:1]),)
    with pytest.raises(InvalidRequest, match="no skill 'detect'"):
        prompts.build(picture, DetectTask("star"))
    with pytest.raises(InvalidRequest, match="captions in en, de"):
        prompts.build(picture, CaptionTask(language="tlh"))


def test_building_from_many_threads(prompts: Any) -> None:
    asked = [to_question(f"{number} <image> " * 20, number % 3) for number in range(24)]
    alone = [prompts.build(messages).token_ids for messages in asked]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda messages: prompts.build(messages).token_ids, asked)) == alone


# --------------------------------------------------------------------------------- halves


def test_each_half_reads_its_own_tensors(family: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded_reads(monkeypatch) as vision:
        family.open_tower(folder, "cpu", "float32")
    with recorded_reads(monkeypatch) as language:
        family.open_language(folder, "cpu", "float32")
    assert {name.split(".")[0] for name in vision} == {"vision_tower", "multi_modal_projector"}
    assert {name.split(".")[0] for name in language} == {"language_model"}
    assert vision | language == set(list_tensors(folder))


def test_tensors_may_have_transformers_inner_names(family: Any, folder: Path, tmp_path: Path) -> None:
    inner = build_paligemma(tmp_path / "inner", inner_names=True)
    assert not set(list_tensors(inner)) & set(list_tensors(folder))
    languages = [family.open_language(each, "cpu", "float32").module.state_dict() for each in (folder, inner)]
    assert fingerprint_tensors(languages[0]) == fingerprint_tensors(languages[1])


def test_checkpoints_that_do_not_fit_are_refused(family: Any, altered: Callable[..., Path], folder: Path) -> None:
    text = json.loads((folder / "config.json").read_text())["text_config"]
    second = altered("config.json", text_config={**text, "model_type": "gemma2"})
    for open_half in (family.open_preprocessor, family.open_prompt_format):
        with pytest.raises(CheckpointError, match="gemma2 language part"):
            open_half(second)
    shutil.rmtree(second)
    with pytest.raises(CheckpointError, match="resize to 56 px"):
        family.open_preprocessor(altered("preprocessor_config.json", size={"height": 64, "width": 64}))


def test_a_tokenizer_that_lets_people_write_pictures_is_refused(
    family: Any, altered: Callable[..., Path], folder: Path
) -> None:
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    plain = altered("tokenizer.json", added_tokens=[{**each, "special": False} for each in added])
    with pytest.raises(CheckpointError, match="must be special tokens"):
        family.open_prompt_format(plain)


# --------------------------------------------------------------------------------- the language part


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
@pytest.mark.parametrize("is_packed", [False, True], ids=["dense", "packed"])
def test_flat_passes_through_transformers_own_layers(
    family: Any, folder: Path, dtype: str, tolerance: float, is_packed: bool
) -> None:
    """Gemma is not among the decoders that are fused; its pictures' beginnings see themselves."""
    language = family.open_language(folder, "cpu", dtype)
    assert not can_fuse(language.module.get_decoder())
    if is_packed and not can_pack(language.device, language.dtype):
        pytest.skip(f"this machine or this torch packs no weights of {dtype}")
    check_flat_runs(language, num_mutual=9, is_packed=is_packed, tolerance=tolerance)


# --------------------------------------------------------------------------------- the whole graph


@dataclass
class Watched:
    """The graph, and the token ids that its engine chose for each request."""

    graph: Any
    ids: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.engine = self.graph.parts.generators["paligemma"]
        step = self.engine._worker.runner.step

        def recording_step(sequences: Any) -> Any:
            made = step(sequences)
            for sequence, token_id in made.tokens:
                self.ids[sequence.request_id].append(token_id)
            return made

        self.engine._worker.runner.step = recording_step

    async def add_picture(self, index: int) -> ImageRef:
        file = io.BytesIO()
        make_picture(index).save(file, "PNG")
        return await self.graph.add_image(file.getvalue())

    async def ask(self, words: str, picture: int) -> Answer:
        image, name = await self.add_picture(picture), f"{words}-{picture}"
        sampling = SamplingWish(max_new_tokens=NEW_TOKENS)
        turn = TurnInput(name, self.graph.tenant, words, image=image, sampling=sampling)
        [end] = [event async for event in self.graph.stream(turn) if isinstance(event, TurnFinished)]
        return tuple(self.ids[name]), end.reply.response


@pytest.fixture
async def watched(family: Any, folder: Path, tmp_path: Path) -> AsyncIterator[Watched]:
    async with open_graph(to_config(folder, tmp_path)) as graph:
        watched = Watched(graph)
        yield watched
        assert await asyncio.to_thread(watched.engine.wait_idle, 20)
        assert watched.engine.check() == ()


async def test_answers_equal_generate_alone_and_together(watched: Watched, original: Original) -> None:
    asked = [(words, picture) for words in QUESTIONS[:2] for picture in range(len(SIZES))]
    expected = [original.answer(*question) for question in asked]
    assert await asyncio.gather(*(watched.ask(*question) for question in asked)) == expected
    watched.ids.clear()
    assert [await watched.ask(*question) for question in asked] == expected
    # Else the checkpoint would prove nothing: answers hang on question and picture, do not run in circles, and end.
    assert len({ids for ids, _ in expected}) == len(asked)
    assert all(len(set(ids)) > NEW_TOKENS // 3 for ids, _ in expected)
    assert any(len(ids) < NEW_TOKENS for ids, _ in expected)


async def test_a_later_turn_is_refused(watched: Watched) -> None:
    tenant, image = watched.graph.tenant, await watched.add_picture(0)
    turns = [
        TurnInput("first", tenant, "What is it?", session_id="talk", image=image),
        TurnInput("later", tenant, "And now?", session_id="talk"),
    ]
    assert [event async for event in watched.graph.stream(turns[0])]
    with pytest.raises(InvalidRequest, match="no conversation"):
        [event async for event in watched.graph.stream(turns[1])]


@pytest.mark.parametrize(("length", "words"), [("short", "cap en"), ("normal", "caption en"), ("long", "describe en")])
async def test_captions(watched: Watched, original: Original, length: Any, words: str) -> None:
    image, sampling = await watched.add_picture(2), SamplingWish(max_new_tokens=NEW_TOKENS)
    asked = TaskInput(words, watched.graph.tenant, CaptionTask(length), image, sampling=sampling)
    reply = await watched.graph.tasks.reply(asked)
    assert (tuple(watched.ids[words]), reply.text) == original.answer(words, 2)
    assert (reply.model_used, reply.usage.image_tokens) == ("paligemma", 16)


def test_python(family: Any, original: Original) -> None:
    namespace: dict[str, Any] = {}
    exec(block_of("your own code"), namespace)
    with namespace["PaliGemma"](original.folder, device="cpu", dtype="float32", num_threads=1) as model:
        assert (
            model.query(make_picture(2), QUESTIONS[0], max_new_tokens=NEW_TOKENS) == original.answer(QUESTIONS[0], 2)[1]
        )

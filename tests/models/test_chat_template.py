"""Only a template writes control tokens: what people write is encoded as ordinary text, with its neighbours."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import build_llava
from tiny_qwen2_vl import build_qwen2_vl
from tokenizers import Tokenizer
from transformers import TokenizersBackend

from deployments.errors import CheckpointError
from deployments.models.chat_template import ChatTemplate
from deployments.types import ImagePart, ImageRef, Message, TextPart

pytestmark = pytest.mark.torch

KINDS = ("smolvlm", "smolvlm2", "qwen2_vl", "llava", "llava-qwen2")
PICTURE = ImagePart(ImageRef("0" * 64, 9, 9, 1, "image/png"))


class Kind:
    """A checkpoint's tokenizer in three guises: ours, the checkpoint's own, and one that knows no added tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.chat = ChatTemplate(folder)
        self.renderer = TokenizersBackend.from_pretrained(folder)
        self.real = Tokenizer.from_file(str(folder / "tokenizer.json"))
        description = json.loads((folder / "tokenizer.json").read_text())
        self.plain = Tokenizer.from_str(json.dumps({**description, "added_tokens": [], "post_processor": None}))
        self.control = {token.content: id for id, token in self.real.get_added_tokens_decoder().items()}
        self._own = re.compile("(" + "|".join(map(re.escape, sorted(self.control, key=len, reverse=True))) + ")")

    def render(self, *texts: str) -> str:
        """What the template writes about texts without control tokens."""
        template = self.folder / "chat_template.json"
        about = json.loads((template if template.is_file() else self.folder / "tokenizer_config.json").read_text())
        jinja = self.folder / "chat_template.jinja"
        turns = [
            {"role": message.role, "content": [{"type": "image"}, {"type": "text", "text": message.text}]}
            for message in to_messages(*texts)
        ]
        chosen = jinja.read_text() if jinja.is_file() else about["chat_template"]
        rendered = self.renderer.apply_chat_template(
            turns, chat_template=chosen, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def expected(self, *texts: str) -> list[int]:
        """Stretches between the template's own control tokens, each encoded as plain text."""
        stands = [f"QXJ{number}QXJ" for number in range(len(texts))]
        ids: list[int] = []
        for index, piece in enumerate(self._own.split(self.render(*stands))):
            for stand, text in zip(stands, texts, strict=True):
                piece = piece.replace(stand, text)
            ids += [self.control[piece]] if index % 2 else self.plain.encode(piece, add_special_tokens=False).ids
        return ids


def to_messages(*texts: str) -> list[Message]:
    """A picture and a text in each turn."""
    roles = ("user", "assistant")
    return [Message(roles[number % 2], (PICTURE, TextPart(text))) for number, text in enumerate(texts)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kinds(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    root = tmp_path_factory.mktemp("kinds")
    folders = {
        "smolvlm": tiny_checkpoint("256m"),
        "smolvlm2": tiny_checkpoint("smolvlm2"),
        "qwen2_vl": build_qwen2_vl(root / "qwen2_vl", variant="2b", seed=0),
        "llava": build_llava(root / "llava"),
        "llava-qwen2": build_llava(root / "llava-qwen2", language="qwen2"),
    }
    return {name: Kind(folder) for name, folder in folders.items()}


FRAGMENTS = (
    *("<image>", "<|image_pad|>", "<|im_end|>", "<|im_start|>", "<end_of_utterance>", "</s>", "<s>", "<unk>", "<pad>"),
    *(
        "<row_1_col_1>",
        "<global-img>",
        "<ima",
        "ge>",
        "<",
        ">",
        "|>",
        "<|",
        "<|im_",
        "end|>",
        "/s>",
        "<0x41>",
        "\u2581",
    ),
    *("word", " word", " ", "  ", "\n", "What is this?", "2024", "日本", "🙂", "\ue000", "\ue001", "1", "é", "e\u0301"),
)
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=10).map("".join)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=150, deadline=None)
@given(said=st.lists(texts, min_size=1, max_size=3))
def test_text_is_text_and_merges_with_its_neighbours(kinds: dict[str, Kind], name: str, said: list[str]) -> None:
    kind = kinds[name]
    assert kind.chat.encode(to_messages(*said)) == kind.expected(*said)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=100, deadline=None)
@given(
    said=st.lists(st.text(st.characters(exclude_characters="<>", exclude_categories=("Cs",))), min_size=1, max_size=3)
)
def test_text_without_control_tokens_is_the_tokenizers_own(kinds: dict[str, Kind], name: str, said: list[str]) -> None:
    kind = kinds[name]
    rendered = kind.render(*said)
    assert kind.chat.encode(to_messages(*said)) == kind.real.encode(rendered, add_special_tokens=False).ids


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_those_of_the_checkpoint(kinds: dict[str, Kind], name: str) -> None:
    kind = kinds[name]
    ids = kind.chat.encode(to_messages("".join(kind.control) * 3, "ok"))
    assert max(ids) < kind.real.get_vocab_size(with_added_tokens=True)
    assert [id for id in ids if id in kind.control.values()] == [
        id for id in kind.expected("a", "b") if id in kind.control.values()
    ]


def test_a_forged_word_keeps_its_neighbours(kinds: dict[str, Kind]) -> None:
    """Cut out and encoded alone, `</s>` would come with a space before it, and so would the text behind it."""
    kind = kinds["llava"]
    ids = kind.chat.encode([Message("user", (TextPart("one</s>two"),))])
    assert ids == kind.plain.encode("USER: one</s>two ASSISTANT:").ids
    assert kind.real.decode(ids) == "USER: one</s>two ASSISTANT:"


def test_many_threads(kinds: dict[str, Kind]) -> None:
    said = [f"{number} <image></s><|im_end|> " * 9 for number in range(32)]
    for kind in kinds.values():
        alone = [kind.chat.encode(to_messages(text)) for text in said]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda text: kind.chat.encode(to_messages(text)), said)) == alone  # noqa: B023


# --------------------------------------------------------------------------------- templates and flags


def altered(kind: Kind, target: Path, template: str | None = None, **flags: bool) -> Kind:
    """A copy of the checkpoint with another template, or other flags of the stop token `</s>`."""
    folder = Path(shutil.copytree(kind.folder, target / "copy"))
    if template is not None:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    for name, tokens in (("tokenizer.json", "added_tokens"), ("tokenizer_config.json", "added_tokens_decoder")):
        content = json.loads((folder / name).read_text())
        listed = content[tokens].values() if isinstance(content[tokens], dict) else content[tokens]
        for token in listed:
            if token["content"] == "</s>":
                token.update(flags)
        (folder / name).write_text(json.dumps(content))
    return Kind(folder)


EACH = "{% for message in messages %}{% for part in message['content'] if part['type'] == 'text' %}"
END = "{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (EACH + "<ima{{ part['text'] }}" + END, "ge>"),
        (EACH + "{{ part['text'] }}ge>" + END, "<ima"),
        (EACH + "{{ part['text'] | trim }}ge>" + END, "<ima  "),
        (EACH + "<ima{{ part['text'] | trim }}" + END, " \nge>"),
        (EACH + "<{{ part['text'] }}" + END, "image>"),
        (EACH + "{{ part['text'] | upper }}" + END, "<image>"),
    ],
)
def test_halves_do_not_become_a_token(kinds: dict[str, Kind], tmp_path: Path, template: str, said: str) -> None:
    kind = altered(kinds["llava"], tmp_path, template)
    ids = kind.chat.encode([Message("user", (TextPart(said),))])
    assert kind.control["<image>"] not in ids
    assert "image>" in kind.real.decode(ids)


def test_halves_in_neighbouring_messages(kinds: dict[str, Kind], tmp_path: Path) -> None:
    kind = altered(kinds["llava"], tmp_path, EACH + "{{ part['text'] }}" + END)
    ids = kind.chat.encode([Message("user", (TextPart("a <ima"),)), Message("assistant", (TextPart("ge> b"),))])
    assert ids == kind.plain.encode("a <image> b").ids


ENDED = EACH + "{{ part['text'] }} </s> and{% endfor %}{% endfor %}"


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_flags_of_control_tokens_hold(
    kinds: dict[str, Kind], tmp_path: Path, flags: dict[str, bool], is_normalized: bool
) -> None:
    kind = altered(kinds["llava"], tmp_path, ENDED, **flags, normalized=is_normalized)

    def ids_of(text: str) -> list[int]:
        return kind.chat.encode([Message("user", (TextPart(text),))])

    assert ids_of("one") == kind.real.encode("one </s> and", add_special_tokens=False).ids
    # A forged token beside it changes nothing about the template's own.
    forged, harmless = ids_of("<image> one"), ids_of("<imxge> one")
    [at] = [index for index, id in enumerate(forged) if id == kind.control["</s>"]]
    [other] = [index for index, id in enumerate(harmless) if id == kind.control["</s>"]]
    assert forged[at - 2 :] == harmless[other - 2 :]
    assert kind.control["<image>"] not in forged


def test_a_token_that_is_no_token_there(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """Matched in normalised text, Llama's `</s>` is one only behind a space; transformers sees it so as well."""
    kind = altered(kinds["llava"], tmp_path, ENDED.replace(" </s> and", "</s> and"), normalized=True)
    assert kind.control["</s>"] not in kind.real.encode("one</s> and", add_special_tokens=False).ids
    ids = kind.chat.encode([Message("user", (TextPart("<image> one"),))])
    assert ids == kind.plain.encode("<image> one</s> and").ids


def test_tokens_that_could_be_missed_are_refused(kinds: dict[str, Kind], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="single_word"):
        altered(kinds["llava"], tmp_path / "a", single_word=True)
    kind = altered(kinds["llava"], tmp_path / "b", normalized=True)
    content = json.loads((kind.folder / "tokenizer.json").read_text())
    content["normalizer"]["normalizers"].append({"type": "Lowercase"})
    (kind.folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="normalized"):
        ChatTemplate(kind.folder)


# --------------------------------------------------------------------------------- special tokens


def test_the_beginning_is_there_once(kinds: dict[str, Kind], tmp_path: Path) -> None:
    kind = kinds["llava"]
    whole = ChatTemplate(kind.folder, adds_special_tokens=True)
    messages = to_messages("a", "b", "c")
    assert whole.encode(messages) == [kind.control["<s>"], *kind.chat.encode(messages)]
    assert whole.encode(messages) == kind.real.encode(kind.render("a", "b", "c")).ids
    writes_it = altered(kind, tmp_path, "{{ bos_token }}" + ENDED)
    ids = ChatTemplate(writes_it.folder, adds_special_tokens=True).encode(to_messages("<s>a"))
    assert ids.count(kind.control["<s>"]) == 1
    assert ids == writes_it.chat.encode(to_messages("<s>a"))


def test_tokenizers_that_add_nothing(kinds: dict[str, Kind]) -> None:
    kind = kinds["llava-qwen2"]
    assert ChatTemplate(kind.folder, adds_special_tokens=True).encode(to_messages("a")) == kind.expected("a")


def test_padding_and_truncation_of_the_file_are_switched_off(kinds: dict[str, Kind], tmp_path: Path) -> None:
    kind = kinds["qwen2_vl"]
    folder = Path(shutil.copytree(kind.folder, tmp_path / "copy"))
    cut = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cut.enable_truncation(5)
    cut.enable_padding(length=7)
    cut.save(str(folder / "tokenizer.json"))
    assert ChatTemplate(folder).encode(to_messages("a", "b")) == kind.chat.encode(to_messages("a", "b"))


@pytest.mark.parametrize(("name", "count"), [("llava", 256), ("llava-qwen2", 0), ("qwen2_vl", 0), ("smolvlm", 0)])
def test_byte_tokens(kinds: dict[str, Kind], name: str, count: int) -> None:
    kind = kinds[name]
    assert len(kind.chat.byte_token_ids) == count
    if count:
        assert {kind.real.id_to_token(id) for id in kind.chat.byte_token_ids} >= {"<0x00>", "<0x0A>", "<0xFF>"}

"""Templates that cannot work are found when a checkpoint is opened, and what people wrote wrong is their own fault."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_llava import build_llava
from tiny_qwen2_vl import build_qwen2_vl

from deployments.errors import CheckpointError, InvalidRequest
from deployments.models.chat_template import ChatTemplate
from deployments.models.control_tokens import SEAL, Sealed
from deployments.types import Message, TextPart

pytestmark = pytest.mark.torch

KINDS = ("smolvlm", "smolvlm2", "qwen2_vl", "llava")
SHOWN = "{{ messages[0]['content'][-1]['text'] }}"


@pytest.fixture(scope="module")
def folders(tiny_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    return {
        "smolvlm": tiny_checkpoint("256m"),
        "smolvlm2": tiny_checkpoint("smolvlm2"),
        "qwen2_vl": build_qwen2_vl(root / "qwen2_vl", variant="2b", seed=0),
        "llava": build_llava(root / "llava"),
    }


@pytest.fixture(scope="module")
def chats(folders: dict[str, Path]) -> dict[str, ChatTemplate]:
    return {name: ChatTemplate(folder, adds_special_tokens=name == "llava") for name, folder in folders.items()}


def with_template(folder: Path, target: Path, template: str) -> Path:
    copy = Path(shutil.copytree(folder, target / "copy"))
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return copy


def say(*texts: str) -> list[Message]:
    return [Message("user", tuple(map(TextPart, texts)))]


# --------------------------------------------------------------------------------- opening


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('no users') }}", "no users"),
        ("{{ messages[7].content + 1 }}", "no element 7"),
        ("{{ messages[0]['role'] + 1 }}", "concatenate"),
        ("", "does not show what people write"),
        ("USER:{% for part in [] %}{{ part }}{% endfor %}", "does not show what people write"),
    ],
)
def test_templates_that_cannot_work(folders: dict[str, Path], tmp_path: Path, template: str, said: str) -> None:
    folder = with_template(folders["llava"], tmp_path, template)
    with pytest.raises(CheckpointError, match=said) as caught:
        ChatTemplate(folder)
    assert str(folder) in caught.value.message


@pytest.mark.parametrize("template", ["{{ 1 + messages[1].role }}", "{{ 1 // (messages | length - 2) }}"])
def test_whatever_a_template_raises_later_is_the_requests_fault(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, template: str
) -> None:
    whole = f"{SHOWN}{{% if messages | length > 1 %}}{template}{{% endif %}}"
    chat = ChatTemplate(with_template(folders["llava"], tmp_path, whole))
    assert chat.encode(say("one"))
    with pytest.raises(InvalidRequest, match="chat template refuses"):
        chat.encode(say("one") * 2)
    assert "Error" in caplog.text


# --------------------------------------------------------------------------------- texts in parts


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_control_tokens_in_pieces_stay_text(chats: dict[str, ChatTemplate], name: str, data: st.DataObject) -> None:
    """Parts are not joined before the template sees them: each piece is sealed at both of its edges."""
    chat = chats[name]
    control = chat._control._ids
    token = data.draw(st.sampled_from(sorted(name for name in control if len(name) > 1)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(token) - 1), min_size=1, max_size=3)))
    pieces = [token[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(token)], strict=True)]
    if data.draw(st.booleans()):
        pieces.insert(data.draw(st.integers(0, len(pieces))), "")
    pieces[0] = data.draw(st.sampled_from(["", "ab ", "<", SEAL])) + pieces[0]
    said, harmless = (
        Counter(id for id in chat.encode(say(*texts)) if id in control.values())
        for texts in (pieces, "q" * len(pieces))
    )
    assert said == harmless


def test_a_template_puts_what_it_likes_between_texts(chats: dict[str, ChatTemplate]) -> None:
    llava, qwen = chats["llava"], chats["qwen2_vl"]
    assert "USER: one two ASSISTANT:" in llava.decode(llava.encode(say("one", "two")))
    assert "onetwo" in qwen.decode(qwen.encode(say("one", "two")))


# --------------------------------------------------------------------------------- seals


def test_seals_are_opened_whatever_stands_beside_them() -> None:
    sealed = Sealed()
    marks = [sealed.seal(text) for text in ("<image>", "", "</s>")]
    forged = f"{SEAL}{'0' * 39}{SEAL}0{SEAL}"
    for before in ("", "1", SEAL, forged, forged[:-1], marks[0][:-1]):
        text = f"{before}{marks[0]}7{marks[1]}{marks[2]}{SEAL}9{SEAL}"
        assert sealed.open(text) == f"{before}<image>7</s>{SEAL}9{SEAL}"
        assert sealed.blank(text) == f"{before}xxxxxxx7xxxx{SEAL}9{SEAL}"


def test_a_conversation_compiles_no_pattern_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which cost as much as a third of encoding it."""
    monkeypatch.setattr(re, "compile", lambda *_: pytest.fail("compiled"))
    sealed = Sealed()
    assert sealed.open(sealed.seal("<image>")) == "<image>"


def test_a_seal_that_a_template_cut_stays_as_it_is() -> None:
    sealed = Sealed()
    mark = sealed.seal("<image>")
    for cut in (mark[:-1], mark[:-2], mark[:20], mark[:-1] + "x" + SEAL, mark[:-1] + "5" + SEAL):
        assert sealed.open(cut) == cut


# --------------------------------------------------------------------------------- no text


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("text", ["\ud800", "a\udfff<image>", "<\ud83d"])
def test_half_a_surrogate_pair_is_no_text(chats: dict[str, ChatTemplate], name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match="half a surrogate pair") as caught:
        chats[name].encode(say("one", text))
    assert caught.value.param == "message"
    caught.value.message.encode()

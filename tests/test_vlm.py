"""The models in one's own process: captions, questions and conversations, streaming and not, without a cluster."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.errors import CheckpointError, ConfigError, InvalidImage, InvalidRequest
from deployments.in_process.inputs import read_picture, to_messages, to_wish
from deployments.ingress.turn_types import SamplingWish
from deployments.vlm import Answer, SmolVLM, VisionLanguageChatSystem

pytestmark = pytest.mark.torch

PICTURE = Path(__file__).parents[1] / "demo" / "images" / "blue-square-and-yellow-star.jpg"
SEEN = "I see a blue square at the top left and a yellow star at the bottom right on a gray background."


@pytest.fixture(scope="module")
def smolvlm() -> Iterator[SmolVLM]:
    with SmolVLM(num_threads=1) as model:
        yield model


def test_a_caption_is_a_text_that_knows_what_it_took(smolvlm: SmolVLM) -> None:
    answer = smolvlm.caption(PICTURE, prompt="Describe this image.")
    assert isinstance(answer, Answer)
    assert answer == SEEN
    assert answer.usage.image_tokens == 16
    assert answer.timings.first_token_ms > 0
    assert answer.thought == ""


def test_the_pieces_of_a_stream_are_the_answer(smolvlm: SmolVLM) -> None:
    stream = smolvlm.caption(PICTURE, stream=True)
    pieces = list(stream)
    assert "".join(pieces) == SEEN
    assert len(pieces) > 5
    assert stream.answer == SEEN
    assert stream.answer is not None
    assert stream.answer.usage.completion_tokens > 5


def test_pictures_may_be_paths_bytes_and_pillow_images(smolvlm: SmolVLM) -> None:
    from PIL import Image

    with Image.open(PICTURE) as picture:
        picture.load()
        given = [str(PICTURE), PICTURE, PICTURE.read_bytes(), picture, picture.convert("RGBA"), picture.convert("CMYK")]
    assert [smolvlm.query(one, "What color is the star?") for one in given] == ["It is yellow."] * len(given)


def test_a_question_without_a_picture(smolvlm: SmolVLM) -> None:
    assert "picture" in smolvlm.query(None, "What color is the circle?")


def test_a_stream_that_is_left_early_frees_its_place(smolvlm: SmolVLM) -> None:
    """With two slots and no room to wait for one this would hang if a left stream kept its place."""
    for _ in range(6):
        stream = smolvlm.caption(PICTURE, stream=True)
        next(stream)
        stream.close()
        with pytest.raises(StopIteration):
            next(stream)
    assert smolvlm.caption(PICTURE) == SEEN


def test_several_threads_may_ask_at_once(smolvlm: SmolVLM) -> None:
    answers: list[str] = []
    asking = [threading.Thread(target=lambda: answers.append(smolvlm.caption(PICTURE))) for _ in range(6)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(60)
    assert answers == [SEEN] * 6


def test_sampling_is_passed_on(smolvlm: SmolVLM) -> None:
    short = smolvlm.caption(PICTURE, max_new_tokens=3)
    assert short.usage.completion_tokens == 3
    assert SEEN.startswith(short)
    drawn = [smolvlm.caption(PICTURE, temperature=2.0, seed=7) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert smolvlm.query(PICTURE, "What do you see?", stop=(" and",)) == "I see a blue square at the top left"


def test_log_probabilities_say_the_answer(smolvlm: SmolVLM) -> None:
    stream = smolvlm.query(PICTURE, "What do you see?", stream=True, logprobs=2)
    assert "".join(stream) == SEEN
    assert stream.answer is not None
    answer = smolvlm.query(PICTURE, "What do you see?", logprobs=2)
    for tokens in (answer.logprobs, stream.answer.logprobs):
        assert tokens is not None
        assert "".join(token.chosen.text for token in tokens).strip() == SEEN
        assert len(tokens) == answer.usage.completion_tokens
        assert all(token.top[0].token_id == token.chosen.token_id for token in tokens), "greedy takes the likeliest"
        assert all(-1 < token.chosen.logprob <= 0 and len(token.top) == 2 for token in tokens), "it is sure of itself"
    assert smolvlm.query(PICTURE, "What do you see?").logprobs is None


def test_penalties_and_min_p_are_passed_on(smolvlm: SmolVLM) -> None:
    drawn = [smolvlm.caption(PICTURE, temperature=2.0, seed=seed, min_p=1.0) for seed in range(3)]
    assert drawn == [SEEN] * 3, "only the likeliest is left"
    assert smolvlm.caption(PICTURE, repetition_penalty=9.0) != SEEN
    penalties: list[Any] = [{}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}]
    assert len({smolvlm.caption(PICTURE, temperature=4.0, seed=7, **penalty) for penalty in penalties}) == 3


def test_what_the_model_cannot_do_is_refused(smolvlm: SmolVLM) -> None:
    with pytest.raises(InvalidRequest, match="logprobs is 21; it must be a whole number, 0 to 20"):
        smolvlm.caption(PICTURE, logprobs=21)
    with pytest.raises(InvalidRequest, match="chat gives texts alone"):
        next(VisionLanguageChatSystem(smolvlm).chat(None, "Hello", logprobs=1))
    with pytest.raises(InvalidRequest, match=r"min_p is 1\.5"):
        smolvlm.caption(PICTURE, min_p=1.5)
    with pytest.raises(InvalidRequest, match="captions in en"):
        smolvlm.caption(PICTURE, language="ja")
    with pytest.raises(InvalidRequest, match="no reasoning"):
        smolvlm.query(PICTURE, "Why?", reasoning=True)
    with pytest.raises(InvalidRequest, match="unknown option 'tmperature'; there is temperature"):
        smolvlm.caption(PICTURE, tmperature=1.0)  # type: ignore[call-overload]
    with pytest.raises(InvalidRequest, match="prompt replaces length and language"):
        smolvlm.caption(PICTURE, prompt="Describe this", length="short")
    with pytest.raises(InvalidRequest, match="question is empty"):
        smolvlm.query(PICTURE, "")
    with pytest.raises(InvalidImage):
        smolvlm.caption(b"no picture")


def test_a_conversation_whose_history_the_caller_keeps(smolvlm: SmolVLM) -> None:
    chat = VisionLanguageChatSystem(smolvlm)
    history = [
        {"role": "user", "content": "Hello, my name is Ada"},
        {"role": "assistant", "content": "Hello Ada! Nice to meet you."},
    ]
    assert "".join(chat.chat(None, "What is my name?", history=history)) == "Your name is Ada."
    tokens = list(chat.chat(PICTURE, "What do you see in this image?", history=[]))
    assert "".join(tokens) == SEEN
    assert len(tokens) > 5
    about = [{"role": "user", "content": "What do you see in this image?"}, {"role": "assistant", "content": SEEN}]
    assert "".join(chat.chat(PICTURE, "What color is the star?", history=about)) == "It is yellow."


def test_models_load_by_themselves_and_again_after_close() -> None:
    model = SmolVLM(num_threads=1)
    assert model.query(PICTURE, "What color is the star?") == "It is yellow."
    stream = model.caption(PICTURE, stream=True)
    next(stream)
    model.close()
    model.close()
    stream.close()  # its model is gone: nothing to cancel
    assert model.load() is model
    assert model.query(PICTURE, "What color is the star?") == "It is yellow."
    model.close()


def test_wrong_models_are_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown model 'smol'; there is smolvlm, qwen2_vl, moondream, llava"):
        VisionLanguageChatSystem("smol")
    with pytest.raises(ConfigError, match="takes no checkpoint"):
        VisionLanguageChatSystem(SmolVLM(), tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        SmolVLM(tmp_path).load()
    with pytest.raises(ConfigError, match="device"):
        SmolVLM(device="tpu").load()
    with pytest.raises(ConfigError, match="unknown option 'dvice'; there is revision, device"):
        SmolVLM(dvice="cuda")  # type: ignore[call-arg]


def test_pictures_of_every_mode_survive_the_bridge() -> None:
    from PIL import Image

    gradient = Image.linear_gradient("L").resize((8, 8))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"):
        with Image.open(io.BytesIO(read_picture(gradient.convert(mode) if mode != "LA" else gradient))) as back:
            assert back.size == (8, 8)


def test_inputs_that_are_none() -> None:
    with pytest.raises(InvalidRequest, match=r"gone\.png"):
        read_picture("gone.png")
    with pytest.raises(InvalidRequest, match="image is a int"):
        read_picture(3)  # type: ignore[arg-type]
    turns: list[Any] = [{"role": "robot", "content": "x"}, {"role": "user"}, {"role": "user", "content": "x", "a": "y"}]
    for turn in (*turns, "hi", ("user", "x")):
        with pytest.raises(InvalidRequest, match=r"history\.0"):
            to_messages([turn], "what?")
    for question in ("", " ", None, 3):
        with pytest.raises(InvalidRequest, match="question is"):
            to_messages([], question)  # type: ignore[arg-type]
    for path in ("a\0b", Path("a\0b")):
        with pytest.raises(InvalidRequest, match="null"):
            read_picture(path)


def test_sampling_is_checked_and_not_guessed_at() -> None:
    assert to_wish({"temperature": 1, "seed": None}).temperature == 1
    assert to_wish({"logprobs": 3, "repetition_penalty": None, "min_p": 0.5}) == SamplingWish(num_logprobs=3, min_p=0.5)
    assert [to_wish({"stop": stop}).stop for stop in ("ab", ["ab"], ("ab", "c"))] == [("ab",), ("ab",), ("ab", "c")]
    wrong: list[Any] = [{"temperature": "hot"}, {"temperature": True}, {"max_new_tokens": "5"}, {"stop": (3,)}]
    wrong += [{"logprobs": True}, {"presence_penalty": None}, {"repetition_penalty": "1"}]
    for sampling in wrong:
        with pytest.raises(InvalidRequest, match=next(iter(sampling))):
            to_wish(sampling)


def test_pillow_images_without_pixels_are_refused_and_turned_ones_stand_upright() -> None:
    from PIL import Image

    with pytest.raises(InvalidRequest, match="0 x 4"):
        read_picture(Image.new("RGB", (0, 4)))
    turned = Image.new("RGB", (20, 10))
    turned.getexif()[0x0112] = 6
    with Image.open(io.BytesIO(read_picture(turned))) as upright:
        assert upright.size == (10, 20)

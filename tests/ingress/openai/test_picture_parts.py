"""Pictures of POST /v1/chat/completions: where they may come from, their detail, their place, and what is refused."""

from __future__ import annotations

import pytest
from ingress.bench import Bench, BuildBench, ScriptedGenerator, data_url, picture
from ingress.openai.openai_bench import RED, WIDE, image, openai_error, text_of, user

from deployments.types import Chunk, ImagePart, ImageRef, Message, TextPart, Timings, Usage

CHUNKS = (Chunk("Hi", 1), Chunk("", 0, "stop", Usage(1, 0, 0, 1), Timings(0, 0, 0, 0, 0)))
PLACE = "messages[0].content[1].image_url.url"
PATH = "/v1/chat/completions"


async def messages_of(build_bench: BuildBench, *messages: object, bench: Bench | None = None) -> tuple[Message, ...]:
    """What the generator got."""
    generator = ScriptedGenerator(CHUNKS)
    bench = bench or build_bench(generator)
    assert text_of(await bench.client.post(PATH, json={"messages": messages})) == "Hi"
    return generator.requests[0].messages


def sizes(message: Message) -> list[tuple[int, int]]:
    return [(ref.width, ref.height) for ref in message.images]


# ------------------------------------------------------------------------------------- conversations


async def test_a_conversation_as_it_stands(build_bench: BuildBench) -> None:
    given = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be true."}]},
        user("What?", RED),
        {"role": "assistant", "content": "A red one."},
        user(WIDE, "And this?"),
        {"role": "assistant", "content": None, "refusal": "No.", "annotations": [], "tool_calls": None, "audio": None},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "So?"},
    ]
    messages = await messages_of(build_bench, *given)
    assert [message.role for message in messages] == ["system", "system", "user", "assistant", "user"] + [
        "assistant"
    ] * 3 + ["user"]
    assert messages[1].content == (TextPart("Be kind."), TextPart("Be true."))
    assert (sizes(messages[2]), sizes(messages[4])) == ([(40, 30)], [(80, 20)])
    assert [message.text for message in messages[5:]] == ["No.", "ab", "", "So?"]
    assert messages[7].content == (TextPart(""),)


@pytest.mark.parametrize(
    ("parts", "kinds"),
    [
        (["a", RED], "ia"),
        ([RED, "a"], "ia"),
        (["a", RED, WIDE], "IJa"),
        (["a", RED, "b"], "aib"),
        (["a", RED, "b", WIDE], "JaIb"),
        ([RED], "i"),
        (["", RED], "i"),
    ],
)
async def test_pictures_behind_all_words_go_before_them(build_bench: BuildBench, parts: list[str], kinds: str) -> None:
    (message,) = await messages_of(build_bench, user(*parts))
    shown = [part.text if isinstance(part, TextPart) else part.image.width for part in message.content]
    widths = {"i": 40, "I": 40, "J": 80}
    assert shown == [widths.get(kind, kind) for kind in kinds]


async def test_equal_pictures_are_one_and_stay_where_they_are(build_bench: BuildBench) -> None:
    messages = await messages_of(build_bench, user(RED, "a"), user(RED, "b"))
    assert messages[0].images == messages[1].images


# ------------------------------------------------------------------------------------- sources


async def test_stored_pictures_and_files_by_id(build_bench: BuildBench) -> None:
    generator = ScriptedGenerator(CHUNKS)
    bench = build_bench(generator)
    image_id = (await bench.client.post("/images", files={"image": picture()})).json()["id"]
    file = await bench.client.post("/v1/files", files={"file": picture()}, data={"purpose": "vision"})
    file_id = file.json()["id"]
    by_id = [image(RED), image(image_id), image(file_id), {"type": "file", "file": {"file_id": file_id}}]
    for part in by_id:
        text_of(await bench.client.post(PATH, json={"messages": [user("What?", part)]}))
    assert {request.messages[0].images[0].id for request in generator.requests} == {image_id}


@pytest.mark.parametrize(
    ("url", "status", "code", "words"),
    [
        ("https://example.org/a.png", 400, "invalid_value", "not fetched from the web"),
        ("HTTP://127.0.0.1/a.png", 400, "invalid_value", "not fetched from the web"),
        ("file:///etc/passwd", 400, "invalid_value", "is no picture"),
        ("", 400, "invalid_value", "is no picture"),
        ("iVBORw0KGgo=", 400, "invalid_value", "is no picture"),
        ("data:image/png;base64,%%%", 400, "invalid_image", "is not base64"),
        ("data:image/png,abc", 400, "invalid_image", "must be a data URL"),
        ("data:text/plain;base64,aGVsbG8=", 400, "invalid_image", "must be a data URL"),
        ("data:image/png;base64,aGVsbG8=", 400, "unsupported_image", "not a picture"),
        ("data:image/png;base64,", 400, "invalid_image", "empty"),
        (data_url(picture()[:-40]), 400, "invalid_image", "damaged"),
        ("file-123", 404, "not_found", "there is no file 'file-123'"),
        ("0" * 64, 404, "image_not_found", "no picture"),
    ],
)
async def test_what_is_no_picture(bench: Bench, url: str, status: int, code: str, words: str) -> None:
    error = openai_error(await bench.client.post(PATH, json={"messages": [user("x", image(url))]}), status, code, PLACE)
    assert words in error["message"]


async def test_pictures_over_a_limit(build_bench: BuildBench) -> None:
    bench = build_bench(images={"max_image_bytes": 50})
    reply = await bench.client.post(PATH, json={"messages": [user("x", RED)]})
    openai_error(reply, 400, "image_too_large", PLACE)


async def test_too_many_pictures(build_bench: BuildBench) -> None:
    bench = build_bench(ingress={"max_input_images": 2})
    reply = await bench.client.post(PATH, json={"messages": [user("x", RED, RED), user(RED)]})
    place = "messages[1].content[0].image_url.url"
    assert "ingress.max_input_images" in openai_error(reply, 400, "invalid_value", place)["message"]


async def test_a_wrong_file_id(bench: Bench) -> None:
    part = {"type": "file", "file": {"file_id": "nothing"}}
    reply = await bench.client.post(PATH, json={"messages": [user(part)]})
    openai_error(reply, 404, "not_found", "messages[0].content[0].file.file_id")


async def test_the_picture_of_a_file_that_is_gone(bench: Bench) -> None:
    file = await bench.client.post("/v1/files", files={"file": picture()}, data={"purpose": "vision"})
    await bench.client.delete(f"/images/{file.json()['image_id']}")
    reply = await bench.client.post(PATH, json={"messages": [user("x", image(file.json()["id"]))]})
    assert "upload it again" in openai_error(reply, 404, "image_not_found", PLACE)["message"]


async def test_nothing_is_stored_for_what_is_refused_anyway(build_bench: BuildBench) -> None:
    bench = build_bench()
    await bench.client.post(PATH, json={"messages": [user("x", RED)], "max_tokens": 10**6})
    await bench.client.post(PATH, json={"messages": [user("x", RED)], "model": "gpt"})
    probe = (await build_bench().client.post("/images", files={"image": picture()})).json()["id"]
    assert (await bench.client.get(f"/images/{probe}")).status_code == 404


# ------------------------------------------------------------------------------------- detail


@pytest.mark.parametrize(
    ("size", "detail", "seen"),
    [
        ((1024, 256), "low", (512, 128)),
        ((300, 1200), "low", (128, 512)),
        ((512, 512), "low", (512, 512)),
        ((40, 30), "low", (40, 30)),
        ((2000, 1), "low", (512, 1)),
        ((1024, 256), "high", (1024, 256)),
        ((1024, 256), "auto", (1024, 256)),
        ((1024, 256), "original", (1024, 256)),
        ((1024, 256), None, (1024, 256)),
    ],
)
async def test_low_detail_is_a_smaller_picture(
    build_bench: BuildBench, size: tuple[int, int], detail: str | None, seen: tuple[int, int]
) -> None:
    generator = ScriptedGenerator(CHUNKS)
    bench = build_bench(generator)
    data = picture(size=size)
    image_id = (await bench.client.post("/images", files={"image": data})).json()["id"]
    for url in (data_url(data), image_id):
        text_of(await bench.client.post(PATH, json={"messages": [user("x", image(url, detail=detail))]}))
    refs = [request.messages[0].images[0] for request in generator.requests]
    assert [(ref.width, ref.height) for ref in refs] == [seen, seen]
    assert refs[0] == refs[1]  # the same bytes each time
    assert (refs[0].id == image_id) == (seen == size)


def test_an_image_part_holds_no_bytes() -> None:
    part = ImagePart(ImageRef("a" * 64, 1, 1, 1, "image/png"))
    assert "data" not in str(part)

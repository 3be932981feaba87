"""POST /caption, /query, /detect and /point in one piece: three encodings, and the shape and content of the replies."""

from __future__ import annotations

import httpx
import pytest
from ingress.bench import Bench, BuildBench, picture, post_form
from ingress.vision_bench import ASKED, MIXED, post_all

from deployments.fakes import FakeGenerator, FakeVisionEncoder
from deployments.types import CaptionTask, DetectTask, GenerateRequest, PointTask, QueryTask, Task

MADE_KEYS = {"model_used", "request_id", "image_id", "finish_reason", "usage", "cost", "timings"}
ANSWERS = {"/caption": "caption", "/query": "answer", "/detect": "objects", "/point": "points"}


class Recorder(FakeGenerator):
    """Remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[GenerateRequest] = []

    def stream(self, request: GenerateRequest):  # type: ignore[no-untyped-def]
        self.requests.append(request)
        return super().stream(request)


def without_made(reply: httpx.Response) -> dict[str, object]:
    return {key: value for key, value in reply.json().items() if key not in ("timings", "request_id")}


# ------------------------------------------------------------------------------------- replies


@pytest.mark.parametrize("path", ASKED)
async def test_all_encodings_give_the_same_reply(bench: Bench, path: str) -> None:
    replies = await post_all(bench, path, ASKED[path])
    assert [reply.status_code for reply in replies] == [200] * 5
    assert all(without_made(reply) == without_made(replies[0]) for reply in replies)
    assert set(replies[0].json()) == {ANSWERS[path], *MADE_KEYS}
    assert next(iter(replies[0].json())) == ANSWERS[path]


@pytest.mark.parametrize("path", ASKED)
async def test_how_the_answer_was_made(build_bench: BuildBench, path: str) -> None:
    bench = build_bench(FakeGenerator(vision_encoder=FakeVisionEncoder()))
    reply = await post_form(bench, ASKED[path], picture(), path)
    body = reply.json()
    assert (body["model_used"], body["finish_reason"]) == ("fake", "stop")
    assert body["request_id"] == reply.headers["x-request-id"]
    assert (await bench.client.get(f"/images/{body['image_id']}")).content == picture()
    assert set(body["usage"]) == {"prompt_tokens", "image_tokens", "reused_tokens", "completion_tokens"}
    assert body["usage"]["image_tokens"] == 16
    assert set(body["timings"]) == {
        "queue_ms",
        "encode_ms",
        "prefill_ms",
        "decode_ms",
        "first_token_ms",
        "encode_source",
    }
    assert body["timings"]["encode_source"] == "tower"
    again = await post_form(bench, {**ASKED[path], "image_id": body["image_id"]}, None, path)
    assert again.json()["timings"]["encode_source"] == "memory"
    assert (await bench.client.get("/chat/sessions")).json()["count"] == 0


async def test_captions(bench: Bench) -> None:
    plain = await post_form(bench, {}, picture(size=(50, 20)), "/caption")
    assert plain.json()["caption"] == "A normal caption in en. The picture has 50 x 20 pixels."
    chosen = await post_form(bench, {"length": "short", "language": "ja"}, picture(), "/caption")
    assert chosen.json()["caption"].startswith("A short caption in ja.")
    prompted = await post_form(bench, {"prompt": "Describe this"}, picture(), "/caption")
    assert prompted.json()["caption"].startswith('You asked: "Describe this".')


async def test_a_question_without_a_picture(bench: Bench) -> None:
    for reply in (
        await post_form(bench, {"question": "Warum?"}, None, "/query"),
        await bench.client.post("/query", json={"question": "Warum?"}),
        await bench.client.post("/query", data={"question": "Warum?"}),
    ):
        body = reply.json()
        assert body["answer"] == 'You asked: "Warum?".'
        assert (body["image_id"], body["timings"]["encode_source"]) == (None, None)


async def test_reasoning_is_there_when_it_was_asked_for_and_only_then(bench: Bench) -> None:
    for reply in await post_all(bench, "/query", {"question": "What is it?", "reasoning": True}):
        body = reply.json()
        assert set(body) == {"answer", "reasoning", *MADE_KEYS}
        assert set(body["reasoning"]) == {"text", "grounding"}
        assert body["reasoning"]["text"] == "The question has 3 words. The picture has 40 x 30 pixels."
        (grounding,) = body["reasoning"]["grounding"]
        assert set(grounding) == {"start_idx", "end_idx", "points"}
        about = body["reasoning"]["text"][grounding["start_idx"] : grounding["end_idx"]]
        assert about == "The picture has 40 x 30 pixels."
        assert [len(point) for point in grounding["points"]] == [2]
    unseen = (await bench.client.post("/query", json={"question": "Why?", "reasoning": True})).json()
    assert unseen["reasoning"] == {"text": "The question has 1 words.", "grounding": []}
    assert "reasoning" not in (await bench.client.post("/query", json={"question": "Why?", "reasoning": False})).json()


async def test_places_found(bench: Bench) -> None:
    boxes = (await post_form(bench, {"object": "circle"}, picture(), "/detect")).json()["objects"]
    points = (await post_form(bench, {"object": "circle"}, picture(), "/point")).json()["points"]
    assert len(boxes) == len(points) >= 1
    for box, point in zip(boxes, points, strict=True):
        assert list(box) == ["x_min", "y_min", "x_max", "y_max"]
        assert list(point) == ["x", "y"]
        assert 0 <= box["x_min"] < point["x"] < box["x_max"] <= 1
        assert 0 <= box["y_min"] < point["y"] < box["y_max"] <= 1


async def test_nothing_found_is_an_empty_list(build_bench: BuildBench) -> None:
    class Blind(FakeGenerator):
        def stream(self, request: GenerateRequest):  # type: ignore[no-untyped-def]
            return super().stream(GenerateRequest("r", "public", request.messages, request.sampling, 10))

    bench = build_bench(Blind())
    assert (await post_form(bench, {"object": "cat"}, picture(), "/detect")).json()["objects"] == []
    assert (await post_form(bench, {"object": "cat"}, picture(), "/point")).json()["points"] == []


# ------------------------------------------------------------------------------------- fields

FIELDS: list[tuple[str, dict[str, object], Task]] = [
    ("/caption", {}, CaptionTask("normal", "en", None)),
    ("/caption", {"length": "long", "language": "pt-BR"}, CaptionTask("long", "pt-BR", None)),
    ("/caption", {"prompt": " 日本語で + & "}, CaptionTask(prompt=" 日本語で + & ")),
    ("/query", {"question": "a\nb"}, QueryTask("a\nb")),
    (
        "/query",
        {"question": "x", "reasoning": True, "spatial_refs": [[0, 1], [0.25, 0, 0.5, 1.0]]},
        QueryTask("x", True, ((0, 1), (0.25, 0, 0.5, 1.0))),
    ),
    ("/detect", {"object": "a cat"}, DetectTask("a cat", 50)),
    ("/detect", {"object": "x", "max_objects": 150}, DetectTask("x", 150)),
    ("/point", {"object": "x", "max_objects": 1}, PointTask("x", 1)),
]


@pytest.mark.parametrize(("path", "fields", "task"), FIELDS, ids=str)
async def test_fields_reach_the_generator_from_each_encoding(
    build_bench: BuildBench, path: str, fields: dict[str, object], task: Task
) -> None:
    recorder = Recorder()
    replies = await post_all(build_bench(recorder), path, fields)
    assert [reply.status_code for reply in replies] == [200] * 5
    assert [request.task for request in recorder.requests] == [task] * 5
    assert len({request.session_key for request in recorder.requests}) == 1


@pytest.mark.parametrize("path", ["/caption", "/query"])
async def test_sampling_reaches_the_generator(build_bench: BuildBench, path: str) -> None:
    recorder = Recorder()
    sampling: dict[str, object] = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "max_new_tokens": 3, "seed": 1}
    replies = await post_all(build_bench(recorder), path, {**ASKED[path], **sampling, "stop": "zebra"})
    assert [reply.json()["finish_reason"] for reply in replies] == ["length"] * 5
    got = recorder.requests[0].sampling
    assert all(request.sampling == got for request in recorder.requests)
    assert {name: getattr(got, name) for name in sampling} == sampling
    assert got.stop == ("zebra",)


async def test_stop_may_be_repeated(bench: Bench) -> None:
    parts = [("question", (None, "one two three")), ("stop", (None, "three")), ("stop", (None, "two"))]
    assert (await bench.client.post("/query", files=parts)).json()["answer"] == 'You asked: "one '
    listed = await bench.client.post("/query", json={"question": "one two three", "stop": ["three", "two"]})
    assert listed.json()["answer"] == 'You asked: "one '


async def test_max_objects_is_a_limit(bench: Bench) -> None:
    all_of_them = (await post_form(bench, {"object": "dot"}, picture(), "/detect")).json()["objects"]
    assert len(all_of_them) > 1
    first = (await post_form(bench, {"object": "dot", "max_objects": 1}, picture(), "/detect")).json()["objects"]
    assert first == all_of_them[:1]


# ------------------------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("default", "models"),
    [
        (None, {"/caption": "other", "/query": "other", "/detect": "fake", "/point": "fake"}),
        ("fake", {"/caption": "fake", "/query": "fake", "/detect": "fake", "/point": "fake"}),
    ],
)
async def test_without_a_model_the_default_or_the_first_that_can(
    build_bench: BuildBench, default: str | None, models: dict[str, str]
) -> None:
    bench = build_bench(models=MIXED, default_model=default)
    used = {path: (await post_form(bench, ASKED[path], picture(), path)).json()["model_used"] for path in models}
    assert used == models


@pytest.mark.parametrize("path", ASKED)
async def test_a_model_by_name(bench: Bench, path: str) -> None:
    replies = await post_all(bench, path, {**ASKED[path], "model": "other"})
    assert [reply.json()["model_used"] for reply in replies] == ["other"] * 5

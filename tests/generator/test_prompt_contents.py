"""What may share K/V and what may not: prompts of pictures, towers, tenants and places, looked up in a tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from generator.letters import LetterPrompts, picture, user

from deployments.generator.prefix_tree import PrefixTree
from deployments.generator.prompt_contents import PICTURE, PLACE, TEXT, answer_contents, contents_of, realm_of
from deployments.models.family import ImageSpan, Prompt
from deployments.types import ImageRef

CAT, DOG = picture("cat", 40), picture("dog", 40)


def prompt_of(*parts: str | ImageRef, num_mutual: int = 0) -> Prompt:
    return replace(LetterPrompts().build([user(*parts)]), num_mutual=num_mutual)


def num_shared(first: Prompt, second: Prompt, **differing: tuple[Any, Any]) -> int:
    """Tokens of the second prompt that the first one's K/V do for; by keys of `differing` where they are not alike."""
    tree = PrefixTree(100)
    tree.add(*look_up(first, **{name: values[0] for name, values in differing.items()}))
    realm, contents = look_up(second, **{name: values[1] for name, values in differing.items()})
    return tree.match(realm, contents, second.num_mutual, len(contents)).num_tokens


def look_up(prompt: Prompt, tenant: str = "tenant", tower: str = "tower") -> tuple[str, Sequence[Any]]:
    contents = contents_of(prompt, {span.image_id: tower for span in prompt.images})
    return realm_of(prompt, tenant, contents), contents


def whole_blocks(num_tokens: int) -> int:
    return num_tokens // 16 * 16


def test_one_content_for_each_token() -> None:
    prompt = Prompt((9, 290, 290, 7, 5, 290, 4), np.arange(7)[None], 7, (ImageSpan("a", 1, 2), ImageSpan("a", 5, 1)))
    assert contents_of(replace(prompt, places=((4, (0.25,)), (6, (0.5, 1.0)))), {"a": "t"}) == [
        (TEXT, 9),
        (PICTURE, "a", 0, "t"),
        (PICTURE, "a", 1, "t"),
        (TEXT, 7),
        (PLACE, "0.25"),
        (PICTURE, "a", 2, "t"),
        (PLACE, "0.5", "1.0"),
    ]


def test_the_same_prompt_shares_all_of_its_blocks() -> None:
    for parts in (["some text that is longer than a block"], ["what is", CAT, "this?"], [CAT]):
        prompt = prompt_of(*parts)
        assert num_shared(prompt, prompt) == whole_blocks(len(prompt.token_ids))


def test_two_pictures_of_equal_size_share_what_stands_before_them() -> None:
    cat, dog = (prompt_of("what is in this picture?", image, "hm") for image in (CAT, DOG))
    assert cat.token_ids == dog.token_ids, "the placeholder's id is all that they have"
    assert num_shared(cat, dog) == len("what is in this picture?")
    assert num_shared(prompt_of(CAT), prompt_of(DOG)) == 0


def test_the_same_picture_with_another_question_shares_the_picture() -> None:
    # 40 image tokens in two spans, with a token behind each.
    assert num_shared(prompt_of(CAT, "what is it?" * 3), prompt_of(CAT, "how many are there?")) == 42
    assert num_shared(prompt_of(CAT, "what is it?" * 3), prompt_of(CAT)) == 42, "then it ends: an assistant's turn"


def test_a_picture_is_not_its_placeholder_as_text() -> None:
    prompt = prompt_of(CAT)
    as_text = replace(prompt, images=())
    assert num_shared(prompt, as_text) == num_shared(as_text, prompt) == 0


def test_a_picture_shown_twice_goes_on_with_its_rows() -> None:
    twice = prompt_of(CAT, CAT, "!")
    rows = [content[2] for content in look_up(twice)[1] if content[0] == PICTURE]
    assert rows == list(range(80))
    assert num_shared(twice, twice) == whole_blocks(len(twice.token_ids))
    assert num_shared(twice, prompt_of(CAT, "?")) == 42
    assert num_shared(twice, prompt_of(CAT, DOG, "!")) == 42
    assert num_shared(prompt_of(DOG, CAT), prompt_of(CAT, DOG)) == 0


def test_another_tower_saw_something_else() -> None:
    prompt = prompt_of("look: ", CAT)
    assert num_shared(prompt, prompt, tower=("old", "new")) == len("look: ")
    assert num_shared(prompt, prompt, tower=("old", "old")) == whole_blocks(len(prompt.token_ids))


def test_towers_are_told_apart_by_picture() -> None:
    prompt = prompt_of(CAT, DOG)
    contents = contents_of(prompt, {"cat": "old", "dog": "new"})
    assert {content[1:4:2] for content in contents if content[0] == PICTURE} == {("cat", "old"), ("dog", "new")}
    assert contents_of(prompt, {"cat": "old"})[:42] == contents[:42]


def test_tenants_share_nothing() -> None:
    for parts in (["a text that is longer than a block"], [CAT, "what?"]):
        prompt = prompt_of(*parts)
        assert num_shared(prompt, prompt, tenant=("a", "b")) == 0
        assert num_shared(prompt, replace(prompt, num_mutual=20), tenant=("a", "a")) == 0


def test_places_are_what_stands_there_and_not_their_ids() -> None:
    def pointing(*places: tuple[int, tuple[float, ...]]) -> Prompt:
        return replace(prompt_of("x" * 40), places=places)

    assert num_shared(pointing((20, (0.5,))), pointing((20, (0.5,)))) == 32
    assert num_shared(pointing((20, (0.5,))), pointing((20, (0.25,)))) == 20
    assert num_shared(pointing((20, (0.5, 0.5))), pointing((20, (0.5,)))) == 20
    assert num_shared(pointing((20, (0.5,))), pointing()) == 20
    assert num_shared(pointing((20, (0.1 + 0.2,))), pointing((20, (0.3,)))) == 20, "to the last bit"


@pytest.mark.parametrize("num_mutual", [16, 17, 40])
def test_a_beginning_that_sees_itself_is_shared_whole_or_not_at_all(num_mutual: int) -> None:
    first = prompt_of("a" * 40 + "b" * 20, num_mutual=num_mutual)
    assert num_shared(first, first) == 48
    for length in (15, num_mutual - 1):
        assert num_shared(first, prompt_of("a" * length + "z" * 50, num_mutual=num_mutual)) == 0
    longer = prompt_of("a" * 40 + "b" * 20, num_mutual=num_mutual + 1)
    assert num_shared(first, longer) == num_shared(longer, first) == 0, "what sees more is something else"
    assert num_shared(first, replace(first, num_mutual=0)) == 0
    assert num_shared(first, prompt_of("a" * 40 + "b" * 5 + "c", num_mutual=num_mutual)) == 45


def test_mutual_pictures_of_equal_size() -> None:
    cat, dog = (prompt_of(image, "what?", num_mutual=41) for image in (CAT, DOG))
    assert cat.token_ids == dog.token_ids
    assert num_shared(cat, dog) == 0
    assert num_shared(cat, prompt_of(CAT, "who?", num_mutual=41)) == 44, "the picture, and wh"
    assert num_shared(cat, cat, tower=("old", "new")) == 0
    assert num_shared(cat, cat, tenant=("a", "b")) == 0


def test_tenants_and_beginnings_do_not_run_into_each_other() -> None:
    plain = prompt_of("x" * 20)
    names = ["", "a", "b", '["a"', "a, b", "ä", "\ud83d", "0"]
    assert len({realm_of(plain, name, []) for name in names}) == len(names)
    assert realm_of(plain, "a", []) == realm_of(prompt_of("y"), "a", [(TEXT, 1)])


def test_an_answer_is_read_as_text_by_the_next_turn() -> None:
    question = prompt_of("how are you today?")
    again = replace(question, token_ids=(*question.token_ids, 11, 12, 13))
    assert contents_of(again, {}) == contents_of(question, {}) + answer_contents([11, 12, 13])

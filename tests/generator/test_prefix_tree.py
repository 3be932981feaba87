"""Which beginnings are remembered in which blocks: single cases, and any run of calls against a naive model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from deployments.generator.prefix_tree import BLOCK_TOKENS, NO_MATCH, Content, Match, Node, PrefixTree


def text(letters: str) -> list[Content]:
    return [(0, ord(letter)) for letter in letters]


def whole(*letters: str) -> list[Content]:
    """A block of each letter."""
    return text("".join(letter * BLOCK_TOKENS for letter in letters))


def find(tree: PrefixTree, contents: Sequence[Content], realm: str = "", least: int = 0, most: int = 1000) -> int:
    """How much is remembered; leaves no pin."""
    match = tree.match(realm, contents, least, most)
    tree.unpin(match)
    return match.num_tokens


def test_nothing_is_remembered_of_nothing() -> None:
    tree = PrefixTree(4)
    assert tree.match("", whole("a"), 0, 100) is NO_MATCH
    assert tree.add("", []) == []
    assert tree.add("", text("a" * (BLOCK_TOKENS - 1))) == []
    assert tree.match("", [], 0, 0) is NO_MATCH
    assert (tree.num_used, tree.problems()) == (0, [])


def test_whole_blocks_are_remembered() -> None:
    tree = PrefixTree(4)
    filled = tree.add("", whole("a", "b") + text("c" * 5))
    assert [index for index, _ in filled] == [0, 1]
    match = tree.match("", whole("a", "b", "c"), 0, 1000)
    assert match.num_tokens == 2 * BLOCK_TOKENS
    assert match.blocks == [block for _, block in filled]


@pytest.mark.parametrize(
    ("letters", "num_shared"),
    [("a" * 16 + "b" * 9 + "x", 25), ("a" * 16 + "x", 16), ("a" * 7, 7), ("a" * 16, 16), ("x" + "a" * 15, 0)],
)
def test_the_last_block_may_be_shared_in_part(letters: str, num_shared: int) -> None:
    tree = PrefixTree(4)
    tree.add("", whole("a", "b"))
    assert find(tree, text(letters)) == num_shared


def test_of_several_blocks_the_one_that_shares_most() -> None:
    tree = PrefixTree(8)
    for letters in ("aaaabbbbcccccccc", "aaaabbzzzzzzzzzz", "aaaa000000000000", "zzzzzzzzzzzzzzzz"):
        tree.add("", text(letters))
    assert find(tree, text("aaaabbbbccd")) == 10
    assert find(tree, text("aaaabbzy")) == 7
    assert find(tree, text("aaaabc")) == 5
    assert find(tree, text("aaaazz")) == 4
    assert find(tree, text("y")) == 0


def test_bounds() -> None:
    tree = PrefixTree(4)
    tree.add("", whole("a", "b"))
    assert find(tree, whole("a", "b"), most=31) == 31
    assert find(tree, whole("a", "b"), most=16) == 16
    assert find(tree, whole("a", "b"), most=0) == 0
    assert find(tree, whole("a", "x"), least=16) == 16
    assert tree.match("", whole("a", "x"), 17, 1000) is NO_MATCH
    assert tree.num_pinned == 0, "what is not enough is not pinned"


def test_realms_share_nothing() -> None:
    tree = PrefixTree(4)
    [(_, mine)] = tree.add("me", whole("a"))
    assert tree.match("you", whole("a"), 0, 100) is NO_MATCH
    [(_, yours)] = tree.add("you", whole("a"))
    assert mine != yours
    assert tree.match("you", whole("a"), 0, 100).blocks == [yours]


def test_what_is_there_is_not_filled_again() -> None:
    tree = PrefixTree(4)
    assert len(tree.add("", whole("a", "b"))) == 2
    assert tree.add("", whole("a", "b")) == []
    assert [index for index, _ in tree.add("", whole("a", "b", "c"))] == [2]


def test_the_least_that_is_worth_it_is_kept_even_of_a_block_in_part() -> None:
    """Of a beginning that sees itself, less than all of it is of no use."""
    tree = PrefixTree(4)
    assert [index for index, _ in tree.add("", text("a" * 25), least=20)] == [0, 1]
    assert find(tree, text("a" * 40), least=20) == 25
    assert tree.add("", text("a" * 24 + "b"), least=20) == [], "twenty of them are there"
    assert [index for index, _ in tree.add("", text("a" * 24 + "b"), least=25)] == [1]
    assert [index for index, _ in tree.add("", whole("a", "a", "c"), least=20)] == [1, 2], "whole, in one more place"
    assert (find(tree, whole("a", "a", "c")), tree.num_evicted) == (48, 1), "for which the first one in part went"
    assert tree.problems() == []


def test_capacity_zero() -> None:
    tree = PrefixTree(0)
    assert tree.add("", whole("a", "b")) == []
    assert find(tree, whole("a")) == 0
    assert (tree.num_used, tree.num_evicted, tree.problems()) == (0, 0, [])


def test_capacity_one() -> None:
    tree = PrefixTree(1)
    assert tree.add("", whole("a", "b")) == [(0, 0)], "the beginning, and no room for more"
    assert find(tree, whole("a", "b")) == 16
    assert tree.add("other", whole("c")) == [(0, 0)]
    assert find(tree, whole("a")) == 0
    pinned = tree.match("other", whole("c"), 0, 100)
    assert tree.add("", whole("a")) == []
    tree.unpin(pinned)
    assert tree.add("", whole("a")) == [(0, 0)]
    assert (tree.num_evicted, tree.problems()) == (2, [])


def test_the_least_recently_used_goes_first_and_ends_before_beginnings() -> None:
    tree = PrefixTree(3)
    tree.add("", whole("a", "b"))
    tree.add("", whole("x"))
    assert find(tree, whole("a")) == 16  # used again, without its end
    tree.add("", whole("y"))
    assert (find(tree, whole("a", "b")), find(tree, whole("x")), find(tree, whole("y"))) == (16, 16, 16)
    tree.add("", whole("z"))
    assert [find(tree, whole(letter)) for letter in "axyz"] == [0, 16, 16, 16]


def test_being_found_is_being_used() -> None:
    tree = PrefixTree(3)
    for letter in "abc":
        tree.add("", whole(letter))
    assert find(tree, text("a" * 5)) == 5  # also in part
    tree.add("", whole("d"))
    tree.add("", whole("e"))
    assert [find(tree, whole(letter)) for letter in "abcde"] == [16, 0, 0, 16, 16]


def test_pins_protect_all_of_a_beginning() -> None:
    tree = PrefixTree(2)
    tree.add("", whole("a", "b"))
    first, second = (tree.match("", whole("a", "b"), 0, 1000) for _ in range(2))
    assert tree.num_pinned == 2
    for match in (first, second):
        assert tree.add("", whole("x")) == []
        tree.unpin(match)
    assert len(tree.add("", whole("x"))) == 1
    assert find(tree, whole("a", "b")) == 16


def test_what_grows_does_not_evict_itself() -> None:
    tree = PrefixTree(2)
    tree.add("", whole("a", "b"))
    assert tree.add("", whole("a", "b", "c", "d")) == []
    assert find(tree, whole("a", "b", "c")) == 32


def test_unpinning_twice_is_a_fault() -> None:
    tree = PrefixTree(2)
    tree.add("", whole("a"))
    match = tree.match("", whole("a"), 0, 100)
    tree.unpin(match)
    with pytest.raises(AssertionError, match="unpinned more often than pinned"):
        tree.unpin(match)


def test_problems_are_told() -> None:
    tree = PrefixTree(2)
    tree.add("", whole("a"))
    match = tree.match("", whole("a"), 0, 100)
    assert tree.problems() == [f"block {match.blocks[0]} has 1 pins"]
    tree.unpin(match)
    tree._free.append(match.blocks[0])
    assert tree.problems() == ["blocks are lost or held twice"]
    tree._free.remove(match.blocks[0])
    assert tree.problems() == []
    tree._roots.clear()
    assert tree.problems() == [f"block {match.blocks[0]} cannot be reached"]


# --------------------------------------------------------------------------------- any run of calls

Path = tuple[str, tuple[Content, ...]]  # a remembered block: realm, and all contents up to its end

MIXED: list[Content] = [(1, "cat", row, "tower") for row in range(BLOCK_TOKENS)]
KEYS = [
    text("a" * 16),
    text("a" * 15 + "b"),
    text("a" * 6 + "b" * 10),
    text("b" * 16),
    MIXED,
    text("a" * 6) + MIXED[:10],
    [*MIXED[:9], (2, "0.5", "0.25"), *text("a" * 6)],
]


@st.composite
def any_contents(draw: st.DrawFn) -> list[Content]:
    blocks = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4))
    return list(itertools.chain(*blocks))[: draw(st.integers(1, len(blocks) * BLOCK_TOKENS))]


@dataclass
class Block:
    number: int
    used: int  # when, by the count of calls
    num_pins: int = 0


class AnyCalls(RuleBasedStateMachine):
    """The model is a dictionary that is searched from end to end."""

    matches = Bundle("matches")

    @initialize(num_blocks=st.sampled_from([0, 1, 2, 3, 5, 9]))
    def open(self, num_blocks: int) -> None:
        self.tree = PrefixTree(num_blocks)
        self.model: dict[Path, Block] = {}
        self.clock = 0

    @rule(
        target=matches, realm=st.sampled_from("pq"), contents=any_contents(), least=st.integers(0, 40), data=st.data()
    )
    def match(self, realm: str, contents: list[Content], least: int, data: st.DataObject) -> Match:
        most = data.draw(st.integers(0, len(contents)))
        found = self.tree.match(realm, contents, least, most)
        longest = max((shared(path, contents[:most]) for name, path in self.model if name == realm), default=0)
        assert found.num_tokens == (longest if longest >= max(least, 1) else 0)
        assert len(found.nodes) == -(-found.num_tokens // BLOCK_TOKENS)
        self.clock += 1
        for path, node in zip(paths_of(realm, found.nodes), found.nodes, strict=True):
            assert self.model[path].number == node.block
            assert shared(path[1], contents[:most]) == min(len(path[1]), found.num_tokens)
            self.model[path].used = self.clock
            self.model[path].num_pins += 1
        return found

    @rule(realm=st.sampled_from("pq"), contents=any_contents(), data=st.data())
    def find(self, realm: str, contents: list[Content], data: st.DataObject) -> None:
        self.unpin(self.match(realm, contents, 0, data))

    @rule(match=consumes(matches))
    def unpin(self, match: Match) -> None:
        self.tree.unpin(match)
        by_number = {block.number: block for block in self.model.values()}
        for node in match.nodes:
            by_number[node.block].num_pins -= 1

    @rule(realm=st.sampled_from("pq"), contents=any_contents(), data=st.data())
    def add(self, realm: str, contents: list[Content], data: st.DataObject) -> None:
        least = data.draw(st.one_of(st.just(0), st.integers(0, len(contents))))
        wanted = [(realm, tuple(contents[:stop])) for stop in range(BLOCK_TOKENS, len(contents) + 1, BLOCK_TOKENS)]
        longest = max((shared(path, contents) for name, path in self.model if name == realm), default=0)
        if len(wanted) * BLOCK_TOKENS < least and longest < least:
            wanted.append((realm, tuple(contents)))
        before, self.clock = set(self.model), self.clock + 1
        filled = dict(self.tree.add(realm, contents, least))
        for index, path in enumerate(wanted):
            if path not in before:
                room = self.make_room(keep=path)
                if room is None:
                    break
                number = filled.pop(index)
                assert number in room
                self.model[path] = Block(number, self.clock)
            self.model[path].used = self.clock
        assert not filled, "what was there, and what had no room, is not filled"

    def make_room(self, keep: Path) -> set[int] | None:
        """The numbers of which the next block is one; None where all are needed."""
        free = set(range(self.tree.num_blocks)) - {block.number for block in self.model.values()}
        if free:
            return free
        ends = [path for path in self.model if not block_behind(self.model, path) and not stands_before(path, keep)]
        ends = [path for path in ends if not self.model[path].num_pins]
        if not ends:
            return None
        return {self.model.pop(min(ends, key=lambda path: (self.model[path].used, -len(path[1])))).number}

    @invariant()
    def nothing_is_lost_or_held_twice(self) -> None:
        assert [problem for problem in self.tree.problems() if not problem.endswith("pins")] == []
        assert self.tree.num_used == len(self.model)
        assert self.tree.num_pinned == sum(block.num_pins > 0 for block in self.model.values())
        held = {(realm, node.block) for node, realm in self.tree._by_use.items()}
        assert held == {(path[0], block.number) for path, block in self.model.items()}


def shared(left: Sequence[Content], right: Sequence[Content]) -> int:
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    return sum(1 for _ in pairs)


def paths_of(realm: str, nodes: Sequence[Node]) -> list[Path]:
    contents: tuple[Content, ...] = ()
    paths = []
    for node in nodes:
        contents += node.key
        paths.append((realm, contents))
    return paths


def stands_before(path: Path, other: Path) -> bool:
    """Whether the other one needs it; behind what is no whole block stands nothing."""
    is_whole = len(path[1]) % BLOCK_TOKENS == 0
    return is_whole and path[0] == other[0] and path != other and other[1][: len(path[1])] == path[1]


def block_behind(model: dict[Path, Block], path: Path) -> bool:
    return any(stands_before(path, other) for other in model)


TestAnyCalls = AnyCalls.TestCase
TestAnyCalls.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

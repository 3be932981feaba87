"""Which beginnings of prompts are remembered in which blocks: a tree of blocks of tokens. Pure; knows no torch.

A block holds the K/V of BLOCK_TOKENS tokens behind those of its parents; of fewer where nothing is behind it. What a
token's K/V depend on besides the tokens before it (whose picture, which row of it, which coordinates) is in its
content, never its placeholder id.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_TOKENS = 16

Content = tuple[int | str, ...]  # of one token; contents of different kinds differ in their first entry
Key = tuple[Content, ...]  # of one block


@dataclass(slots=True, eq=False)
class Node:
    key: Key
    block: int
    parent: Node | None  # None: it begins a prompt
    children: Children = field(default_factory=lambda: Children())
    num_pins: int = 0


class Children:
    """Nodes behind one node, found by their whole key or by the longest beginning that they share with one."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Node] = {}
        self._keys: list[Key] = []  # sorted: the key that shares most with another is a neighbour of its place

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, key: Key) -> Node | None:
        return self._by_key.get(key)

    def add(self, node: Node) -> None:
        self._by_key[node.key] = node
        insort(self._keys, node.key)

    def remove(self, node: Node) -> None:
        del self._by_key[node.key]
        del self._keys[bisect_left(self._keys, node.key)]

    def closest(self, key: Key) -> tuple[Node | None, int]:
        """The node that shares most tokens with the beginning of `key`, and how many; (None, 0) where none does."""
        place = bisect_left(self._keys, key)
        neighbours = self._keys[max(place - 1, 0) : place + 1]
        best = max(neighbours, key=lambda other: _num_shared(other, key), default=())
        num_shared = _num_shared(best, key)
        return (self._by_key[best], num_shared) if num_shared else (None, 0)


def _num_shared(left: Key, right: Key) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))


@dataclass(frozen=True, slots=True)
class Match:
    """A remembered beginning. Pinned until `unpin`: its blocks stay as they are."""

    nodes: tuple[Node, ...]
    num_tokens: int  # the last node may be shared in part

    @property
    def blocks(self) -> list[int]:
        return [node.block for node in self.nodes]


NO_MATCH = Match((), 0)


class PrefixTree:
    """Not thread-safe."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_evicted = 0
        self._roots: dict[str, Children] = {}  # by the realm of a prompt: only prompts of one realm share
        self._free = list(range(num_blocks))
        # Least recently used first. Whoever touches a node touches its parents after it, so no parent stands before its
        # children, and the first one without a pin is a leaf.
        self._by_use: OrderedDict[Node, str] = OrderedDict()

    @property
    def num_used(self) -> int:
        return len(self._by_use)

    @property
    def num_pinned(self) -> int:
        return sum(node.num_pins > 0 for node in self._by_use)

    def match(self, realm: str, contents: Sequence[Content], least: int, most: int) -> Match:
        """The longest remembered beginning of at most `most` tokens, pinned; NO_MATCH where that is under `least`."""
        nodes, num_tokens = self._descend(realm, contents[:most])
        if num_tokens < max(least, 1):
            return NO_MATCH
        self._touch(nodes, realm)
        for node in nodes:
            node.num_pins += 1
        return Match(tuple(nodes), num_tokens)

    def unpin(self, match: Match) -> None:
        for node in match.nodes:
            assert node.num_pins > 0, "unpinned more often than pinned"
            node.num_pins -= 1

    def add(self, realm: str, contents: Sequence[Content], least: int = 0) -> list[tuple[int, int]]:
        """Remember all whole blocks of `contents`, as far as room can be made, and of the last block what there is when
        it would be fewer than `least` tokens without. Says which blocks (index of the block in `contents`, block) the
        caller has to fill before anybody asks again."""
        nodes = self._path(realm, contents)
        for node in nodes:  # what room is made for must not go for it
            node.num_pins += 1
        filled: list[tuple[int, int]] = []
        for index in range(len(nodes), self._num_blocks(realm, contents, least)):
            block = self._take_block()
            if block is None:
                break
            node = Node(_key(contents, index), block, nodes[-1] if nodes else None, num_pins=1)
            self._siblings(realm, node.parent).add(node)
            self._by_use[node] = realm
            nodes.append(node)
            filled.append((index, block))
        for node in nodes:
            node.num_pins -= 1
        self._touch(nodes, realm)
        return filled

    def problems(self) -> list[str]:
        """What is not as it must be while nobody holds a match."""
        found = [f"block {node.block} has {node.num_pins} pins" for node in self._by_use if node.num_pins]
        blocks = sorted([*self._free, *(node.block for node in self._by_use)])
        if blocks != list(range(self.num_blocks)):
            found.append("blocks are lost or held twice")
        for node, realm in self._by_use.items():
            if self._siblings(realm, node.parent).get(node.key) is not node:
                found.append(f"block {node.block} cannot be reached")
        return found

    # ------------------------------------------------------------------ the tree

    def _descend(self, realm: str, contents: Sequence[Content]) -> tuple[list[Node], int]:
        nodes = self._path(realm, contents)
        children = nodes[-1].children if nodes else self._roots.get(realm)
        rest = _key(contents, len(nodes))
        if children is None or not rest:
            return nodes, len(nodes) * BLOCK_TOKENS
        closest, num_shared = children.closest(rest)
        if closest is None:
            return nodes, len(nodes) * BLOCK_TOKENS
        return [*nodes, closest], len(nodes) * BLOCK_TOKENS + num_shared

    def _path(self, realm: str, contents: Sequence[Content]) -> list[Node]:
        """The nodes of whole blocks from the beginning, as far as they are there."""
        nodes: list[Node] = []
        children = self._roots.get(realm)
        for index in range(len(contents) // BLOCK_TOKENS):
            node = children.get(_key(contents, index)) if children is not None else None
            if node is None:
                break
            nodes.append(node)
            children = node.children
        return nodes

    def _num_blocks(self, realm: str, contents: Sequence[Content], least: int) -> int:
        """How many are worth a place. One that is not whole has nothing behind it: others do not find it as a whole."""
        num_whole = len(contents) // BLOCK_TOKENS
        is_enough = num_whole * BLOCK_TOKENS >= least or self._descend(realm, contents)[1] >= least
        return num_whole if is_enough else num_whole + 1

    def _siblings(self, realm: str, parent: Node | None) -> Children:
        return self._roots.setdefault(realm, Children()) if parent is None else parent.children

    def _touch(self, nodes: Sequence[Node], realm: str) -> None:
        for node in reversed(nodes):
            self._by_use[node] = realm
            self._by_use.move_to_end(node)

    def _take_block(self) -> int | None:
        if self._free:
            return self._free.pop()
        victim = next((node for node in self._by_use if not node.num_pins), None)
        if victim is None:
            return None
        assert not len(victim.children), "a parent stands before its children"
        realm = self._by_use.pop(victim)
        siblings = self._siblings(realm, victim.parent)
        siblings.remove(victim)
        if victim.parent is None and not len(siblings):
            del self._roots[realm]
        self.num_evicted += 1
        return victim.block


def _key(contents: Sequence[Content], index: int) -> Key:
    return tuple(contents[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])

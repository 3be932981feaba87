"""Grammars of answers: says for a request which tokens may come, so that what it gets is JSON of the form it asked for.

The route: `grammar_schema.py` reads the schema, llguidance compiles it against `grammar_vocabulary.py`,
`grammar_closing.py` looks for its shortest document, and `grammar_mask.py` follows one answer.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import LRUCache

from deployments.config import GeneratorConfig
from deployments.errors import InvalidRequest
from deployments.generator.grammar_closing import Closer
from deployments.generator.grammar_mask import End, GrammarMask
from deployments.generator.grammar_place import Place
from deployments.generator.grammar_schema import PARAM, refuse, to_llguidance
from deployments.generator.grammar_vocabulary import TokenizerSource, Vocabulary
from deployments.generator.token_mask import OpenMask, TokenMask
from deployments.types import SKILL_OF, GenerateRequest, Grammar

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

    from deployments.models.family import PromptFormat

logger = logging.getLogger(__name__)
MAX_COMPILED = 64  # grammars kept
MAX_SEARCH_BYTES = 10_000  # looked at for a schema's shortest document, once a schema: less than 100 ms
# What a hostile schema may take: some 100 ms to compile, some milliseconds a token, some MB.
MAX_INITIAL_FUEL, MAX_STEP_FUEL, MAX_STEP_ITEMS = 1_000_000, 100_000, 20_000
MAX_LEXER_STATES, MAX_GRAMMAR_SIZE = 20_000, 100_000


@dataclass(frozen=True, slots=True)
class Compiled:
    """A grammar before any answer: never told a token, only copied."""

    tokens: LLMatcher
    text: LLMatcher
    shortest: End


class Grammars:
    """An OpenMask over one model's vocabulary. Thread-safe."""

    def __init__(self, vocabulary: Vocabulary, max_schema_chars: int) -> None:
        self._vocabulary = vocabulary
        self._max_schema_chars = max_schema_chars
        self._compiled: LRUCache[Grammar, Compiled] = LRUCache(MAX_COMPILED)
        self._lock = threading.Lock()

    def __call__(self, request: GenerateRequest, max_new_tokens: int) -> TokenMask | None:
        grammar = request.sampling.grammar
        if grammar is None:
            return None
        check_grammar(request)
        compiled = self._find(grammar)
        if compiled.shortest.num_tokens > max_new_tokens:
            raise InvalidRequest(
                f"the shortest answer that fits the JSON schema takes at least {compiled.shortest.num_tokens} tokens "
                f"of this model; this request leaves room for {max_new_tokens}",
                "max_new_tokens",
            )
        with self._lock:
            tokens, text = compiled.tokens.deep_copy(), compiled.text.deep_copy()
        return GrammarMask(self._vocabulary, tokens, text, compiled.shortest, max_new_tokens)

    def _find(self, grammar: Grammar) -> Compiled:
        with self._lock:
            compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compile(grammar)  # twice, if two come at once with the same: nobody waits for anybody
            with self._lock:
                self._compiled[grammar] = compiled
        return compiled

    def _compile(self, grammar: Grammar) -> Compiled:
        began = time.monotonic()
        text_of_grammar = to_llguidance(grammar, self._max_schema_chars)
        text = _match(text_of_grammar, self._vocabulary.bytes)
        tokens = _match(text_of_grammar, self._vocabulary.tokens)
        closer = Closer(text)
        end = closer.improve(Place(), closer.close(Place()), MAX_SEARCH_BYTES)
        message = text.get_error().partition("\n")[0]
        token_ids = None if end is None else self._vocabulary.encode(end)
        if end is None or token_ids is None or message:
            raise refuse(f"no document was found that fits it ({message or 'none of a bearable length'})")
        logger.info("compiled a grammar of %d characters in %.3f s", len(grammar.schema), time.monotonic() - began)
        return Compiled(tokens, text, End(end, token_ids))


def open_grammars(prompts: PromptFormat, vocab_size: int, config: GeneratorConfig) -> OpenMask:
    """For what a model's prompt format writes and reads. Blocks, for 2 s with a vocabulary of 150,000 tokens."""
    if not isinstance(prompts, TokenizerSource):
        return _refuse_all("it does not show its tokenizer")
    began = time.monotonic()
    try:
        vocabulary = Vocabulary(prompts.tokenizer_json(), vocab_size, prompts.stop_token_ids)
    except ValueError as error:
        return _refuse_all(str(error))
    logger.info("a vocabulary of %d tokens read for grammars in %.3f s", vocab_size, time.monotonic() - began)
    return Grammars(vocabulary, config.max_schema_chars)


def check_grammar(request: GenerateRequest) -> None:
    """Raises InvalidRequest where a grammar and the rest of the request do not go together."""
    if request.task is not None:
        skill = SKILL_OF[type(request.task)]
        raise InvalidRequest(f"{skill} has a form of its own; only conversations take a JSON schema", PARAM)
    if request.sampling.stop:
        raise InvalidRequest("stop would cut a JSON answer short; leave it out, the answer ends by itself", "stop")


def _refuse_all(reason: str) -> OpenMask:
    logger.warning("answers of this model cannot be held to a JSON schema: %s", reason)

    def refuse_grammar(request: GenerateRequest, max_new_tokens: int) -> None:
        if request.sampling.grammar is not None:
            raise InvalidRequest(f"answers of this model cannot be held to a JSON schema: {reason}", PARAM)

    return refuse_grammar


def _match(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """Not under the GIL. Raises InvalidRequest."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        initial_lexer_fuel=MAX_INITIAL_FUEL,
        step_lexer_fuel=MAX_STEP_FUEL,
        step_max_items=MAX_STEP_ITEMS,
        max_lexer_states=MAX_LEXER_STATES,
        max_grammar_size=MAX_GRAMMAR_SIZE,
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if message := matcher.get_error():
        raise refuse(" ".join(message.split()))
    return matcher

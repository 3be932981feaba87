"""From a request to a sequence: its prompt, what is remembered of it, and the features of the pictures that are not.

Belongs to the event loop; what takes long is done in a thread or by the vision encoder.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deployments.errors import InvalidRequest
from deployments.generator.admission import with_defaults
from deployments.generator.answer_text import AnswerText
from deployments.generator.context import Fitted, fit_request
from deployments.generator.continuation import extend, replay
from deployments.generator.pictures import check_features, needed_pictures, pull_features
from deployments.generator.prefix_cache import PrefixCache
from deployments.generator.prefix_tree import NO_MATCH, Content, Match
from deployments.generator.prompt_contents import contents_of, realm_of
from deployments.generator.sequence import Marks, Sequence, slowest_source
from deployments.generator.thoughts import Thoughts
from deployments.generator.ticket import Ticket
from deployments.generator.token_mask import OpenMask, TokenMask
from deployments.models.family import Prompt, PromptFormat
from deployments.types import EncodeRequest, FinishReason, GenerateRequest, ImageFeatures, VisionEncoder

logger = logging.getLogger(__name__)
NUM_GRAMMAR_THREADS = 2


@dataclass(frozen=True, slots=True)
class Begun:
    """A request as far as it can be read without a model."""

    fitted: Fitted
    given: Prompt  # the prompt and what was answered
    answer: AnswerText  # after what was answered
    ended: FinishReason | None  # why the answer ends with it
    mask: TokenMask | None  # None: the model may say anything


@dataclass(frozen=True, slots=True)
class Found:
    """What is remembered of the beginning of what is given."""

    contents: SequenceOf[Content]  # of all its tokens, if its pictures were seen by `tower`
    tower: str
    match: Match  # pinned


class SequenceBuilder:
    def __init__(
        self,
        model: str,
        prompts: PromptFormat,
        encoder: VisionEncoder,
        prefix: PrefixCache | None,
        context_tokens: int,
        open_mask: OpenMask | None,
    ) -> None:
        self._model = model
        self._prompts = prompts
        self._encoder = encoder
        self._prefix = prefix
        self._context_tokens = context_tokens
        self._open_mask = open_mask
        # Of their own: a schema may take a second to compile, and those who ask for none must not wait for a thread.
        self._grammar_threads = ThreadPoolExecutor(NUM_GRAMMAR_THREADS, thread_name_prefix=f"grammars-{model}")
        self._tower = ""  # that saw the last picture; the K/V of what another one saw are not found any more

    async def build(self, ticket: Ticket) -> Sequence:
        """Its `match` is pinned: who gets the sequence has to unpin it. With `ended`, there is nothing to compute.

        Raises InvalidRequest, PromptTooLong, PartUnavailable, and what the vision encoder raises.
        """
        request, marks = ticket.request, Marks(ticket.arrived)
        threads = None if request.sampling.grammar is None else self._grammar_threads
        # It tokenizes and compiles: off the event loop.
        begun = await asyncio.get_running_loop().run_in_executor(threads, self._read, request)
        if begun.ended is not None:
            return self._to_sequence(ticket, begun, Found((), "", NO_MATCH), {}, marks)
        found = self._find(begun.given, request.tenant)
        try:
            features = await self._encode(ticket, begun.fitted, marks, found.match.num_tokens)
            if features and found.tower != self._tower:  # what it saw does not go with what another one saw
                found, before = self._find(begun.given, request.tenant), found
                self.unpin(before.match)
                features |= await self._encode(ticket, begun.fitted, marks, found.match.num_tokens, features)
            return self._to_sequence(ticket, begun, found, features, marks)
        except BaseException:
            self.unpin(found.match)
            raise

    def _read(self, request: GenerateRequest) -> Begun:
        prompts = self._prompts
        fitted = fit_request(request, prompts, self._context_tokens)
        if num_dropped := len(request.messages) - len(fitted.messages):
            logger.info("request %s: its %d oldest messages do not fit", request.request_id, num_dropped)
        answer = AnswerText(prompts.decode, request.sampling.stop, prompts.byte_token_ids)
        ended = replay(answer, request.answered, fitted.max_new_tokens)
        mask = self._mask_of(request, fitted.max_new_tokens) if ended is None else None
        if mask is not None:
            for token_id in request.answered:
                mask.accept(token_id)
        return Begun(fitted, extend(fitted.prompt, request.answered), answer, ended, mask)

    def _mask_of(self, request: GenerateRequest, max_new_tokens: int) -> TokenMask | None:
        if self._open_mask is not None:
            return self._open_mask(request, max_new_tokens)
        if request.sampling.grammar is not None:
            raise InvalidRequest("this generator was opened without grammars", "response_format")
        return None

    def _to_sequence(
        self,
        ticket: Ticket,
        begun: Begun,
        found: Found,
        features: dict[str, ImageFeatures],
        marks: Marks,
    ) -> Sequence:
        request, fitted = ticket.request, begun.fitted
        contents = found.contents
        if features:  # the K/V are going to be those of what was pulled, whichever tower saw it
            contents = contents_of(begun.given, {image_id: item.tower for image_id, item in features.items()})
            contents[: found.match.num_tokens] = found.contents[: found.match.num_tokens]
        return Sequence(
            number=ticket.number,
            request_id=request.request_id,
            prompt=fitted.prompt,
            features=features,
            pulled=frozenset(features),
            encode_source=slowest_source(fitted.prompt, features.values()),
            sampling=with_defaults(request.sampling, self._prompts),
            max_new_tokens=fitted.max_new_tokens,
            max_positions=self._context_tokens,
            answer=begun.answer,
            thoughts=Thoughts(self._prompts.decode, self._prompts.byte_token_ids),
            stream=ticket.stream,
            marks=marks,
            priority=request.priority,
            answered=request.answered,
            ended=begun.ended,
            mask=begun.mask,
            contents=contents,
            realm=realm_of(fitted.prompt, request.tenant, contents),
            match=found.match,
            num_prefilled=found.match.num_tokens,
        )

    def _find(self, given: Prompt, tenant: str) -> Found:
        """What is remembered of its beginning, pinned."""
        tower = self._tower
        contents = contents_of(given, {span.image_id: tower for span in given.images})
        prefix = self._prefix
        if prefix is None:
            return Found(contents, tower, NO_MATCH)
        realm = realm_of(given, tenant, contents)
        return Found(contents, tower, prefix.match(realm, contents, least=given.num_mutual))

    def unpin(self, match: Match) -> None:
        if self._prefix is not None:
            self._prefix.unpin(match)

    async def _encode(
        self,
        ticket: Ticket,
        fitted: Fitted,
        marks: Marks,
        num_reused: int,
        pulled: Collection[str] = (),
    ) -> dict[str, ImageFeatures]:
        """Features by id of the pictures that are needed beside what is remembered and what was `pulled` before."""
        began, tenant = time.monotonic(), ticket.request.tenant
        timeout_s = ticket.deadline - began
        needed = needed_pictures(fitted.prompt, fitted.messages, num_reused)
        pictures = [image for image in needed if image.id not in pulled]
        if not pictures:
            return {}
        ticket.is_encoding = True
        try:
            features = await pull_features(
                self._encoder, [EncodeRequest(tenant, self._model, image, timeout_s) for image in pictures]
            )
        finally:
            ticket.is_encoding = False
        marks.encode_s += time.monotonic() - began
        check_features(fitted.prompt, fitted.messages, features)
        self._tower = next(iter(features.values())).tower
        return features

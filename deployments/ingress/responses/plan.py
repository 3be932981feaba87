"""What a request for a response comes to: where its turn belongs, what goes before it, and what is stored of it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace

from deployments.errors import InvalidRequest, MessageTooLong, RecordNotFound
from deployments.ingress.completion_types import CompletionInput
from deployments.ingress.completions import affinity_of, choose_conversation_model
from deployments.ingress.error_replies import shorten
from deployments.ingress.request_id import current_request_id
from deployments.ingress.responses.checks import check_request
from deployments.ingress.responses.naming import in_our_words
from deployments.ingress.responses.opening import open_response
from deployments.ingress.responses.reading import find_items, require_picture, take_pictures
from deployments.ingress.responses.request import CreateResponse
from deployments.ingress.responses.resource import ConversationRef, ResponseBody
from deployments.ingress.responses.stored import StoredResponse, without_pictures
from deployments.ingress.services import Services
from deployments.ingress.turn_types import Draft, SamplingWish, TurnInput
from deployments.types import ImagePart, ImageRef, Message, TextPart


@dataclass(frozen=True, slots=True)
class Plan:
    tenant: str
    model: str | None  # None: the session's, or the default
    sampling: SamplingWish
    instructions: str  # and what system and developer items said
    key: str | None  # what requests have in common that are not stored and should go to one replica
    draft: StoredResponse
    previous: StoredResponse | None = None
    follows: str | None = None  # lease of the turn that is gone on from; None: of none, or of whichever is the last
    before: tuple[Message, ...] = ()  # what the turn brings along of what was said elsewhere
    max_chars: int = 0  # of what a turn brings

    @property
    def keeps_all(self) -> bool:
        return self.response.truncation == "disabled"

    @property
    def response(self) -> ResponseBody:
        return self.draft.response

    @property
    def asked(self) -> tuple[Message, ...]:
        return tuple(item.to_message() for item in self.draft.input if not item.is_guidance)

    def to_turn(self) -> TurnInput:
        assert self.response.conversation is not None
        return TurnInput(
            request_id=current_request_id(),
            tenant=self.tenant,
            session_id=self.response.conversation.id,
            model=self.model,
            sampling=self.sampling,
            input=(*self.before, *self.asked),
            instructions=self.instructions,
            follows=self.follows,
            draft=Draft("response", self.response.id, self.draft.model_dump_json(by_alias=True)),
            keeps_all=self.keeps_all,
        )

    def to_completion(self) -> CompletionInput:
        guidance = (Message("system", (TextPart(self.instructions),)),) if self.instructions else ()
        before = self.previous.context if self.previous is not None else ()
        messages = (*guidance, *_as_kept(before, self.asked), *self.asked)
        return CompletionInput(
            request_id=current_request_id(),
            tenant=self.tenant,
            messages=messages,
            model=self.model,
            sampling=self.sampling,
            affinity=affinity_of(self.key, messages),
            keeps_all=self.keeps_all,
        )

    def forked(self) -> Plan:
        """In a conversation of its own, which begins with all that was said up to the previous response."""
        assert self.previous is not None
        response = self.response.model_copy(update={"conversation": ConversationRef(id=_new_session_id())})
        num_chars = len(self.instructions) + sum(len(message.text) for message in self.asked)
        before = _that_fit(_as_kept(self.previous.context, self.asked), self.max_chars - num_chars)
        return replace(self, draft=self.draft.model_copy(update={"response": response}), follows=None, before=before)


async def plan_response(asked: CreateResponse, services: Services, tenant: str) -> Plan:
    """Pictures are read last: what can be refused without them is refused before.

    Raises InvalidRequest, MessageTooLong, RecordNotFound, and what reading pictures raises.
    """
    check_request(asked)
    previous = await _find_previous(asked, services, tenant)
    model = asked.model or _model_of(previous, services)
    sampling = asked.to_sampling()
    if model is not None or asked.conversation is None:  # otherwise only the session_router knows which one it is
        with in_our_words():
            sampling.to_params(services.config.generator_of(choose_conversation_model(services.config, model)))
    found = await find_items(asked, services, tenant)
    told = tuple(item.text for item in found if item.role in ("system", "developer"))
    guidance = (*(previous.guidance if previous is not None else ()), *told)
    instructions = "\n\n".join(text for text in (asked.instructions or "", *guidance) if text)
    limit = services.config.ingress.max_message_chars
    _check_length(instructions, sum(len(item.text) for item in found) - sum(map(len, told)), limit)
    response = _open(asked, previous, services)
    given = await take_pictures(found, response.id, services, tenant)
    before = previous.context if previous is not None else ()
    for image in _pictures(_as_kept(before, tuple(item.to_message() for item in given))):
        await require_picture(image, "previous_response_id", services, tenant)
    return Plan(
        tenant=tenant,
        model=model,
        sampling=sampling,
        instructions=instructions,
        key=asked.prompt_cache_key or asked.safety_identifier or asked.user,
        draft=StoredResponse(
            response=response,
            input=given,
            guidance=guidance,
            expires_s=time.time() + services.config.session_router.response_retain_s,
            is_kept=asked.is_kept,
        ),
        previous=previous,
        follows=previous.lease if previous is not None else None,
        max_chars=limit,
    )


def _open(asked: CreateResponse, previous: StoredResponse | None, services: Services) -> ResponseBody:
    model = asked.model or services.config.first_model  # the turn says which one it is
    session_id = _session_id(asked, previous) if asked.is_stored else None
    return open_response(asked, f"resp_{secrets.token_hex(16)}", time.time(), model, session_id)


def _session_id(asked: CreateResponse, previous: StoredResponse | None) -> str:
    if asked.conversation_id is not None:
        return asked.conversation_id
    if previous is not None and previous.response.conversation is not None:
        return previous.response.conversation.id
    return _new_session_id()


def _model_of(previous: StoredResponse | None, services: Services) -> str | None:
    """A fork goes on with it, too. None where it is no longer served."""
    names = [model.name for model in services.config.models]
    return previous.response.model if previous is not None and previous.response.model in names else None


async def _find_previous(asked: CreateResponse, services: Services, tenant: str) -> StoredResponse | None:
    response_id = asked.previous_response_id
    if response_id is None:
        return None
    try:
        record = await services.records.record(tenant, "response", response_id)
    except RecordNotFound as error:
        message = f"there is no stored response {shorten(response_id)!r} to go on from"
        raise RecordNotFound(message, "previous_response_id") from error
    previous = StoredResponse.from_record(record)
    if not previous.context:
        message = f"response {response_id} has no answer to go on from, or none yet"
        raise InvalidRequest(message, "previous_response_id")
    return previous


def _check_length(instructions: str, num_asked: int, limit: int) -> None:
    """The session_router has the rule, too; here it comes before pictures are read, with the names of this surface."""
    num_chars = len(instructions) + num_asked
    if num_chars > limit:
        where = "instructions" if len(instructions) > limit else "input"
        raise MessageTooLong(
            f"input, instructions and system items have {num_chars} characters together; at most {limit} are allowed "
            "(ingress.max_message_chars)",
            where,
        )


def _as_kept(context: tuple[Message, ...], asked: tuple[Message, ...]) -> tuple[Message, ...]:
    """As a session has it: new pictures replace the one that it kept."""
    return without_pictures(context) if _pictures(asked) else context


def _pictures(messages: tuple[Message, ...]) -> list[ImageRef]:
    return [image for message in messages for image in message.images]


def _that_fit(context: tuple[Message, ...], max_chars: int) -> tuple[Message, ...]:
    """The newest messages, from a question on, with the picture of older ones: a turn brings a bounded number of
    characters.
    """
    num_chars, begin = 0, len(context)
    for index in reversed(range(len(context))):
        num_chars += len(context[index].text)
        if num_chars > max_chars:
            break
        if context[index].role == "user":
            begin = index
    kept, lost = context[begin:], _pictures(context[:begin])
    if not (kept and lost):
        return kept
    return (replace(kept[0], content=(ImagePart(lost[-1]), *kept[0].content)), *kept[1:])


def _new_session_id() -> str:
    return secrets.token_hex(16)

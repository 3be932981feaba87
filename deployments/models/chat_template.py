"""Token ids of conversations by a checkpoint's own chat template, and text from token ids; nothing of pictures' sizes.

Text that people wrote may contain what the tokenizer takes for control tokens (`<image>`, `<|im_end|>`, ...). It is
encoded as ordinary text, so that only the template itself writes control tokens. transformers can do that too
(`sanitize_control_tokens`), but by switching the shared tokenizer to and fro, which two threads cannot do at once.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from transformers import TokenizersBackend

from deployments.errors import CheckpointError, InvalidRequest
from deployments.models.control_tokens import ControlTokens, Sealed
from deployments.models.weights import read_json, reading, require_files
from deployments.models.words import check_text
from deployments.types import ImagePart, ImageRef, Message, TextPart

logger = logging.getLogger(__name__)
BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
PROBE = "2024"  # which no template writes otherwise than it stands here
PROBE_PICTURE = ImageRef("0" * 64, width=4, height=3, num_bytes=1, media_type="image/png")
_PROBE_MESSAGE = Message("user", (ImagePart(PROBE_PICTURE), TextPart(PROBE)))
SYSTEM_PROBE = "2718281828"  # longer: some templates begin with a date


class ChatTemplate:
    """Thread-safe: nothing changes after __init__. Raises CheckpointError there, also for templates that do not work.

    With `adds_special_tokens` the tokenizer's post-processor has its say as well: where a checkpoint is used so, the
    template leaves out the token that begins a sequence.
    """

    byte_token_ids: frozenset[int]  # tokens of one byte each, of vocabularies with byte fallback

    def __init__(self, folder: Path, *, adds_special_tokens: bool = False) -> None:
        require_files(folder, ["tokenizer.json", "tokenizer_config.json"])
        with reading(folder, "tokenizer"):
            # The class that takes tokenizer.json as it is; AutoTokenizer rebuilds some, and loses digit splitting.
            self._renderer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
        self._folder = folder
        self._template = _read_template(folder)
        self._control = ControlTokens(folder, self._renderer.backend_tokenizer)
        self._tokenizer = self._control.tokenizer
        self._before, self._after = _special_tokens(self._tokenizer) if adds_special_tokens else ([], [])
        self.byte_token_ids = byte_token_ids(self._tokenizer)
        self._probe()
        self._takes_system = self._shows_system()

    def token_id(self, token: str) -> int:
        """Id of a control token. Raises CheckpointError when the tokenizer has no such token."""
        token_id = self._control.id_of(token)
        if token_id is None:
            raise CheckpointError(f"checkpoint {self._folder}: its tokenizer has no control token {token!r}")
        return token_id

    def require_ids(self, token_ids: Sequence[int]) -> None:
        """Raises CheckpointError when one of them is no token's."""
        for token_id in token_ids:
            if token_id < 0 or self._tokenizer.id_to_token(token_id) is None:
                raise CheckpointError(
                    f"checkpoint {self._folder}: its tokenizer has no token with the id {token_id}", param="checkpoint"
                )

    def require_picture(self, image_token_id: int) -> None:
        """Raises CheckpointError unless the template shows a picture as that token, once."""
        count = self.encode([_PROBE_MESSAGE]).count(image_token_id)
        if count != 1:
            name = self._tokenizer.id_to_token(image_token_id)
            raise CheckpointError(
                f"the chat template of checkpoint {self._folder} shows a picture as {count} tokens {name!r} instead of "
                "one: the template, or the image token that config.json names, is of another checkpoint",
                param="checkpoint",
            )

    def encode_control(self, text: str) -> list[int]:
        """Ids of text that we wrote ourselves: control tokens in it are meant."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the rendered template with a generation prompt; each picture is what the template writes for it.

        Neighbouring texts go into the template as they are: some templates put something between them. Raises
        InvalidRequest when the template refuses the messages.
        """
        if not self._takes_system and any(message.role == "system" for message in messages):
            raise InvalidRequest(
                "this model's chat template has no place for system messages and instructions; it takes messages of "
                "user and assistant",
                "role",
            )
        sealed = Sealed()
        turns = [self._to_turn(message, sealed) for message in messages]
        try:
            text = self._render(turns)
        except Exception as error:
            # As in _probe. Its words may show how it is made, so they go to the log and not to the client.
            logger.warning("a chat template refused messages: %r", error)
            raise InvalidRequest("the model's chat template refuses these messages", "message") from error
        ids = self._control.encode(text, sealed)
        if self._before and ids[: len(self._before)] == self._before:  # some templates do write it
            return ids
        return [*self._before, *ids, *self._after]

    def _probe(self) -> None:
        """Compile the template and render one question about a picture."""
        where = f"the chat template of checkpoint {self._folder}"
        try:
            rendered = self._render([self._to_turn(_PROBE_MESSAGE, Sealed())])
        except Exception as error:  # a template is a program and raises what it likes
            raise CheckpointError(f"{where} fails with a question about a picture: {error}", "checkpoint") from error
        if PROBE not in rendered:
            raise CheckpointError(f"{where} does not show what people write", param="checkpoint")

    def _shows_system(self) -> bool:
        """Whether a system message stands in what the template writes: some raise, some leave it out."""
        messages = (Message("system", (TextPart(SYSTEM_PROBE),)), Message("user", (TextPart(PROBE),)))
        turns = [self._to_turn(message, Sealed()) for message in messages]
        try:
            rendered = self._render(turns)
        except Exception:  # as in _probe
            return False
        # A template that expects plain text there writes our list of parts as Python does.
        return SYSTEM_PROBE in rendered and str(turns[0]["content"]) not in rendered

    def _render(self, turns: Sequence[Mapping[str, object]]) -> str:
        return str(
            self._renderer.apply_chat_template(
                turns, chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        )

    def _to_turn(self, message: Message, sealed: Sealed) -> Mapping[str, object]:
        if not message.content:
            raise InvalidRequest("a message has no content", "message")
        content = [
            {"type": "image"}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": self._control.seal(check_text(part.text), sealed)}
            for part in message.content
        ]
        return {"role": message.role, "content": content}

    def tokenizer_json(self) -> str:
        """The tokenizer, as a tokenizer.json has it."""
        return str(self._tokenizer.to_str())

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens and without tidying of spaces; an unfinished UTF-8 sequence shows as U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the post-processor puts before a text and behind it."""
    text, whole = (tokenizer.encode("a", add_special_tokens=adds).ids for adds in (False, True))
    start = next(at for at in range(len(whole)) if whole[at : at + len(text)] == text)
    return whole[:start], whole[start + len(text) :]


def byte_token_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens of one byte each, in a vocabulary that falls back to them; none in a byte-level one."""
    if '"ByteFallback"' not in json.dumps(json.loads(tokenizer.to_str())["decoder"]):
        return frozenset()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    return frozenset(token_id for token, token_id in vocabulary.items() if BYTE_TOKEN.fullmatch(token))


def _read_template(folder: Path) -> str:
    """From the first of the three places where repositories keep it."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        with reading(folder, "chat template"):
            return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(folder, name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(template, str):
            return template
        if isinstance(template, list):  # several, by name
            return _default_template(folder, template)
    raise CheckpointError(
        f"checkpoint {folder} has no chat template: looked for chat_template.jinja, and for `chat_template` in "
        "chat_template.json and tokenizer_config.json",
        param="checkpoint",
    )


def _default_template(folder: Path, entries: Sequence[object]) -> str:
    named = {entry["name"]: entry["template"] for entry in entries if isinstance(entry, dict)}
    if "default" not in named:
        raise CheckpointError(f"checkpoint {folder} has chat templates {', '.join(named)}, but none named default")
    return str(named["default"])

"""Token ids of conversations by a checkpoint's own chat template, and text from token ids; nothing of pictures' sizes.

Text that people wrote may contain what the tokenizer takes for control tokens (`<image>`, `<|im_end|>`, ...). It is
encoded as ordinary text, so that only the template itself writes control tokens. transformers can do that too
(`sanitize_control_tokens`), but by switching the shared tokenizer to and fro, which two threads cannot do at once.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import TokenizersBackend

from deployments.errors import CheckpointError, InvalidRequest
from deployments.models.weights import read_json, reading, require_files
from deployments.types import ImagePart, Message, Part, TextPart

logger = logging.getLogger(__name__)


class ChatTemplate:
    """Thread-safe: nothing changes after __init__. Raises CheckpointError there."""

    def __init__(self, folder: Path) -> None:
        require_files(folder, ["tokenizer.json", "tokenizer_config.json"])
        with reading(folder, "tokenizer"):
            # The class that takes tokenizer.json as it is; AutoTokenizer rebuilds some, and loses digit splitting.
            self._renderer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
        self._template = _read_template(folder)
        description = self._renderer.backend_tokenizer.to_str()
        self._tokenizer = Tokenizer.from_str(description)
        # Without added tokens there is nothing to mistake text for; `encode_special_tokens` spares the unspecial ones.
        plain = {**json.loads(description), "added_tokens": [], "post_processor": None}
        self._plain = Tokenizer.from_str(json.dumps(plain))
        added = self._tokenizer.get_added_tokens_decoder().values()
        # An added token of white space alone (some tokenizers have them) is text, not control.
        self._control_tokens = sorted((t.content for t in added if not t.content.isspace()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, self._control_tokens)) or r"(?!)")
        self._require_disarmable(folder)

    def _require_disarmable(self, folder: Path) -> None:
        for token in self._control_tokens:
            if self._tokenizer.token_to_id(token) in self._plain.encode(token, add_special_tokens=False).ids:
                raise CheckpointError(f"checkpoint {folder}: its tokenizer makes {token!r} even of ordinary text")

    def token_id(self, token: str) -> int:
        """Id of a control token. Raises CheckpointError when the tokenizer has no such token."""
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None or token not in self._control_tokens:
            raise CheckpointError(f"the checkpoint's tokenizer has no control token {token!r}")
        return int(token_id)

    def require_ids(self, token_ids: Sequence[int]) -> None:
        """Raises CheckpointError when one of them is no token's."""
        for token_id in token_ids:
            if self._tokenizer.id_to_token(token_id) is None:
                raise CheckpointError(f"the checkpoint's tokenizer has no token with the id {token_id}")

    def encode_control(self, text: str) -> list[int]:
        """Ids of text that we wrote ourselves: control tokens in it are meant."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the rendered template with a generation prompt; each picture is what the template writes for it.

        Raises InvalidRequest when the template refuses the messages.
        """
        # A fresh mark each time cannot be forged; it stands before and after each disarmed token.
        mark = f"\ue000{secrets.token_hex(8)}\ue000"
        turns = [self._to_turn(message, mark) for message in messages]
        try:
            text = self._renderer.apply_chat_template(
                turns, chat_template=self._template, add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            # The template's own words may show how it is made, so they go to the log and not to the client.
            logger.warning("a chat template refused messages: %s", error)
            raise InvalidRequest("the model's chat template refuses these messages", "message") from error
        pieces = text.split(mark)  # template and text, disarmed token, text, disarmed token, ..., text
        tokenizers = (self._tokenizer, self._plain)
        return [
            token_id
            for index, piece in enumerate(pieces)
            for token_id in tokenizers[index % 2].encode(piece, add_special_tokens=False).ids
        ]

    def _to_turn(self, message: Message, mark: str) -> Mapping[str, object]:
        if not message.content:
            raise InvalidRequest("a message has no content", "message")
        content = [
            {"type": "image"}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": self._disarm(part.text, mark)}
            for part in _join_texts(message.content)
        ]
        return {"role": message.role, "content": content}

    def _disarm(self, text: str, mark: str) -> str:
        return self._control.sub(lambda match: f"{mark}{match[0]}{mark}", text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text without special tokens and without tidying of spaces; an unfinished UTF-8 sequence shows as U+FFFD."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def _join_texts(parts: Sequence[Part]) -> list[Part]:
    """Neighbouring texts as one: a template writes them without a gap, and `<ima` + `ge>` must not slip through."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, TextPart) and joined and isinstance(joined[-1], TextPart):
            joined[-1] = TextPart(joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


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

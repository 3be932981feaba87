"""Words of the OpenAPI document that no route and no schema says itself: names, examples, what leads to what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PIXEL = (  # the smallest PNG: an example that works as it stands
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="
)
QUESTION = "What do you see in this image?"


@dataclass(frozen=True, slots=True)
class Operation:
    id: str  # that generated clients name their methods after
    summary: str
    example: Mapping[str, object] | None = None  # of a JSON body
    # Operations that take an id out of this one's reply: parameter and place, by operation.
    leads_to: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def _to(parameter: str, place: str, *operations: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(operations, (parameter, f"$response.body#/{place}"))


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("post", "/chat"): Operation(
        "chat",
        "Ask",
        {"message": QUESTION, "image": PIXEL},
        _to("session_id", "session_id", "getHistory", "deleteSession"),
    ),
    ("get", "/chat/streams/{stream_id}"): Operation("resumeStream", "Go on with a stream"),
    ("post", "/chat/streams/{stream_id}/stop"): Operation("stopStream", "Stop an answer"),
    ("post", "/v1/chat/completions"): Operation(
        "createChatCompletion",
        "Answer a conversation",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": QUESTION},
                        {"type": "image_url", "image_url": {"url": PIXEL}},
                    ],
                }
            ]
        },
    ),
    ("post", "/v1/responses"): Operation(
        "createResponse",
        "Answer, and store the response",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": QUESTION},
                        {"type": "input_image", "image_url": PIXEL},
                    ],
                }
            ]
        },
        _to("response_id", "id", "getResponse", "listInputItems", "cancelResponse", "deleteResponse"),
    ),
    ("get", "/v1/responses/{response_id}"): Operation("getResponse", "A response, or its stream"),
    ("delete", "/v1/responses/{response_id}"): Operation("deleteResponse", "Delete a response"),
    ("post", "/v1/responses/{response_id}/cancel"): Operation("cancelResponse", "Cancel a background response"),
    ("get", "/v1/responses/{response_id}/input_items"): Operation("listInputItems", "What a response was asked"),
    ("post", "/v1/conversations"): Operation(
        "createConversation",
        "Begin a conversation",
        {"metadata": {"topic": "pictures"}},
        _to(
            "conversation_id",
            "id",
            "getConversation",
            "updateConversation",
            "listConversationItems",
            "deleteConversation",
        ),
    ),
    ("get", "/v1/conversations/{conversation_id}"): Operation("getConversation", "A conversation"),
    ("post", "/v1/conversations/{conversation_id}"): Operation(
        "updateConversation", "Change a conversation's metadata", {"metadata": {"topic": "shapes"}}
    ),
    ("delete", "/v1/conversations/{conversation_id}"): Operation("deleteConversation", "Delete a conversation"),
    ("get", "/v1/conversations/{conversation_id}/items"): Operation(
        "listConversationItems", "Messages of a conversation"
    ),
    ("get", "/v1/models"): Operation("listModels", "The models", leads_to=_to("model", "data/0/id", "getModel")),
    ("get", "/v1/models/{model}"): Operation("getModel", "A model"),
    ("post", "/v1/files"): Operation(
        "uploadFile", "Upload a picture", leads_to=_to("file_id", "id", "getFile", "getFileContent", "deleteFile")
    ),
    ("get", "/v1/files"): Operation("listFiles", "The files"),
    ("get", "/v1/files/{file_id}"): Operation("getFile", "What is known of a file"),
    ("delete", "/v1/files/{file_id}"): Operation("deleteFile", "Delete a file"),
    ("get", "/v1/files/{file_id}/content"): Operation("getFileContent", "The bytes of a file"),
    ("post", "/caption"): Operation("caption", "Describe a picture", {"image": PIXEL, "length": "short"}),
    ("post", "/query"): Operation(
        "query", "Answer a question about a picture", {"image": PIXEL, "question": "What color is it?"}
    ),
    ("post", "/detect"): Operation("detect", "Boxes around objects", {"image": PIXEL, "object": "square"}),
    ("post", "/point"): Operation("point", "Points on objects", {"image": PIXEL, "object": "square"}),
    ("get", "/chat/history/{session_id}"): Operation("getHistory", "Messages of a session"),
    ("delete", "/chat/history/{session_id}"): Operation("deleteSession", "Delete a session"),
    ("get", "/chat/sessions"): Operation(
        "listSessions", "The sessions", leads_to=_to("session_id", "sessions/0/session_id", "getHistory")
    ),
    ("post", "/images"): Operation(
        "uploadImage", "Upload a picture", leads_to=_to("image_id", "id", "getImage", "deleteImage")
    ),
    ("get", "/images/{image_id}"): Operation("getImage", "The bytes of a picture"),
    ("delete", "/images/{image_id}"): Operation("deleteImage", "Delete a picture"),
    ("get", "/healthz"): Operation("getHealth", "Whether the process lives"),
    ("get", "/readyz"): Operation("getReadiness", "Whether requests can be answered"),
    ("get", "/-/config"): Operation("getConfig", "The configuration"),
    ("get", "/-/engine"): Operation("getEngines", "What the engines do"),
    ("get", "/-/cache"): Operation("getCache", "What the feature cache holds"),
    ("get", "/-/session_router"): Operation("getSessionRouter", "What the session router does"),
    ("get", "/-/ingress"): Operation("getIngress", "What the ingress does"),
}

# Of parameters and fields by their names, with the shape's in front where it counts, where the place says nothing.
MEANINGS: Mapping[str, str] = {
    "stream_id": "Of the event `start`.",
    "response_id": "Of POST /v1/responses.",
    "conversation_id": "Of POST /v1/conversations; a session_id of POST /chat is one, too.",
    "model": "A name of GET /v1/models.",
    "model_used": "Which model answered.",
    "file_id": "Of POST /v1/files.",
    "image_id": "Of POST /images, or of a reply about a picture.",
    "session_id": "Of the reply to POST /chat.",
    "request_id": "Also in the header X-Request-Id and in the service's log.",
    "if-none-match": "The ETag of bytes that are there already.",
    "limit": "At most so many.",
    "include_obfuscation": "Only false: there is none.",
    "top_p": "Takes from the likeliest tokens that make up this share; 1 keeps all.",
    "presence_penalty": "Taken off the logit of each token that the answer holds.",
    "frequency_penalty": "Taken off as often as the answer holds the token.",
    "usage": "Tokens of prompt and answer.",
    "timings": "Where the time went.",
    "cost": "By the model's prices, where the configuration has them.",
    "image_tokens": "Those of the prompt that stand for pictures.",
    "completion_tokens": "Tokens of the answer.",
    "total_tokens": "Prompt and answer together.",
    "queue_ms": "Until the engine took the request up.",
    "prefill_ms": "Computing what of the prompt was not reused.",
    "first_token_ms": "From the request's arrival at the engine.",
    "deleted": "It is gone.",
    "has_more": "There are more than these.",
    "first_id": "Of the first one in `data`; null for none.",
    "last_id": "Of the last one in `data`; null for none.",
    "x_min": "Left edge, as a share of the picture's width.",
    "y_min": "Upper edge, as a share of the picture's height.",
    "x_max": "Right edge, as a share of the picture's width.",
    "y_max": "Lower edge, as a share of the picture's height.",
    "updated": "When it was last used, ISO 8601.",
    "tool_choice": "There are no tools.",
    "function_call": "There are no functions.",
    "modalities": "Answers are text.",
    "reasoning_effort": "Models here do not reason before they answer.",
    "verbosity": "Only what changes nothing.",
    "service_tier": "There is one.",
    "prompt_cache_retention": "Beginnings of prompts are remembered in memory.",
    "stream_options": "Only with `stream`.",
    "metadata": "Up to 16 texts that are stored and given back.",
    "ChatCompletionRequest.store": "Only false: completions are not stored.",
    "CreateResponse.text": "The answer's format: text, any JSON, or JSON of a schema.",
    "ResponseBody.text": "The answer's format.",
    "ChoiceBody.message": "The answer.",
    "CreateResponse.reasoning": "Models here do not reason before they answer.",
    "expires_after[anchor]": "From when `expires_after[seconds]` counts.",
    "expires_after[seconds]": "After so many the file is deleted.",
    "image": "The picture's file.",
    "id": "By which it is asked for.",
    "object": "What kind of object this is.",
    "type": "What kind of object this is.",
    "role": "Who speaks.",
    "content": "What was said, in its order.",
    "text": "A piece of what was said.",
    "data": "In the order that was asked for.",
    "status": "How far it is.",
    "message": "In words.",
    "code": "For programs: it stays where words change.",
    "param": "The field that is wrong.",
    "error": "What went wrong.",
    "length": "How many messages are kept.",
    "has_image": "A picture is kept.",
    "height": "In pixels.",
    "num_bytes": "Of the picture's file.",
    "bytes": "Of the picture's file.",
    "media_type": "What the bytes say that they are.",
    "created_at": "Unix time in seconds.",
    "filename": "As it was uploaded.",
    "purpose": "As it was uploaded.",
    "x": "As a share of the picture's width.",
    "y": "As a share of the picture's height.",
    "start_idx": "Where in the text it begins.",
    "end_idx": "Behind its last character.",
    "points": "Places in the picture, x and y as shares of its width and height.",
    "grounding": "Places in the picture that pieces of the text are about.",
    "token": "Its text.",
    "token_id": "Its number in the model's vocabulary.",
    "top_logprobs": "The likeliest tokens in its place.",
    "index": "Which of the `n` answers.",
    "choices": "One for each of the `n` answers.",
    "refusal": "What an assistant said in refusal; models here have no such field.",
    "family": "As in the configuration.",
    "skills": "What it can be asked for.",
    "input": "What it takes.",
    "output": "What it gives.",
    "ready": "Whether all parts answer.",
    "text_tokens": "Those of the prompt that are no picture's.",
    "output_tokens": "Tokens of the answer.",
    "prompt_tokens_details": "Which of them are pictures', and which were reused.",
    "input_tokens_details": "Which of them are pictures', and which were reused.",
    "completion_tokens_details": "There are no kinds of them here.",
    "output_tokens_details": "There are no kinds of them here.",
    "previous_response_id": "What this one went on after.",
    "instructions": "The system message of this response.",
    "max_output_tokens": "At most so many tokens an answer.",
    "incomplete_details": "Why the answer was cut off.",
    "format": "Text, any JSON, or JSON of a schema.",
    "effort": "Models here do not reason before they answer.",
    "name": "Of the schema; it plays no part.",
    "image_url": "Which picture.",
    "file": "Which picture.",
}
EMPTY_ONLY = "Not supported: empty, null, or left out."
NULL_ONLY = "Not supported: null, or left out."

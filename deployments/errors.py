"""Every error that Retina raises on purpose, in one tree; each knows its HTTP status and survives pickling.

RetinaError                    500
├── InvalidRequest             400   a field of the request is wrong
│   ├── UnknownModel           400
│   ├── PromptTooLong          400
│   ├── MessageTooLong         413
│   ├── BodyTooLarge           413
│   ├── UnsupportedContentType 415
│   └── InvalidImage           400   the bytes are no picture we read
│       ├── UnsupportedImage   415   a format that is not allowed
│       └── ImageTooLarge      413   bytes, pixels or sides over a limit
├── NotFound                   404
│   ├── SessionNotFound
│   ├── ImageNotFound
│   ├── RecordNotFound                 a stored response or file
│   └── StreamNotFound                 a stream that was not kept, or not for so long
├── SessionBusy                409   another turn holds the session
├── NotLastTurn                409   the session went on since the turn that was to be followed
├── LeaseLost                  409   the turn outlived its lease
├── StreamAbandoned            410   nobody read a kept stream for so long that its turn was given up
├── OriginRefused              403   a web page from elsewhere tried to open a socket
├── Overloaded                 503   queues are full; retry_after_s says when to come back
├── PartUnavailable            503   a replica died or cannot be reached
│   └── ServerUnreachable            raised by our own client: nobody answers at the address
├── DeadlineExceeded           504
└── StartupError               500   raised while building or loading, never to a client
    ├── ConfigError
    ├── CheckpointError
    └── ClusterTooSmall
"""

from __future__ import annotations

from typing import ClassVar


class RetinaError(Exception):
    """`message` is shown to clients as it stands: say what was wrong, where, and what is allowed."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, param: str | None = None, retry_after_s: float | None = None) -> None:
        # All three go to Exception.args, which is what pickle hands back to __init__ in the other process.
        super().__init__(message, param, retry_after_s)
        self.message = message
        self.param = param  # the request field or config key at fault
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class InvalidRequest(RetinaError):
    status, code = 400, "invalid_request"


class UnknownModel(InvalidRequest):
    code = "unknown_model"


class PromptTooLong(InvalidRequest):
    code = "prompt_too_long"


class MessageTooLong(InvalidRequest):
    status, code = 413, "message_too_long"


class BodyTooLarge(InvalidRequest):
    status, code = 413, "body_too_large"


class UnsupportedContentType(InvalidRequest):
    status, code = 415, "unsupported_content_type"


class InvalidImage(InvalidRequest):
    code = "invalid_image"


class UnsupportedImage(InvalidImage):
    status, code = 415, "unsupported_image"


class ImageTooLarge(InvalidImage):
    status, code = 413, "image_too_large"


class NotFound(RetinaError):
    status, code = 404, "not_found"


class SessionNotFound(NotFound):
    code = "session_not_found"


class ImageNotFound(NotFound):
    code = "image_not_found"


class RecordNotFound(NotFound):
    code = "record_not_found"


class StreamNotFound(NotFound):
    code = "stream_not_found"


class SessionBusy(RetinaError):
    status, code = 409, "session_busy"


class NotLastTurn(RetinaError):
    status, code = 409, "not_last_turn"


class LeaseLost(RetinaError):
    status, code = 409, "lease_lost"


class StreamAbandoned(RetinaError):
    status, code = 410, "stream_abandoned"


class OriginRefused(RetinaError):
    status, code = 403, "origin_refused"


class Overloaded(RetinaError):
    status, code = 503, "overloaded"


class PartUnavailable(RetinaError):
    status, code = 503, "part_unavailable"


class ServerUnreachable(PartUnavailable):
    code = "server_unreachable"


class DeadlineExceeded(RetinaError):
    status, code = 504, "deadline_exceeded"


class StartupError(RetinaError):
    code = "startup_error"


class ConfigError(StartupError):
    code = "config_error"


class CheckpointError(StartupError):
    code = "checkpoint_error"


class ClusterTooSmall(StartupError):
    code = "cluster_too_small"

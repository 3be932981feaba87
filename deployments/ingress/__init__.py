"""The HTTP surface. A request to POST /chat, hop by hop:

1. `request_id.py` gives it a name and `body_limit.py` counts its bytes; both stand in front of everything (`app.py`).
2. `chat.py` is the route; `form_body.py` reads multipart, URL-encoded or JSON bodies into `schemas.ChatRequest`.
3. `pictures.py` checks the picture in a bounded thread pool and stores it; what goes on is an ImageRef.
4. `turns.py` opens the turn, and `running_turn.py` streams the answer (`answer.py`, until the `deadline.py`) and closes
   the turn. They know nothing of HTTP; all surfaces use them.
5. The answer leaves as one JSON object or, through `sse.py`, as events. `connection.py` notices a client that left.
6. Whatever goes wrong becomes one shape of error in `error_replies.py`.

With `resumable` the turn runs by itself: `streams/service.py` begins it and lets clients follow,
`streams/live_stream.py` pulls its events into a log (`streams/stores/`), `streams/heart.py` tells the other replicas
that its owner lives, and `streams/ownership.py` takes it over where that one does not; `continued_answer.py` does the
same for generators. `stream_routes.py` is how clients come back. WS /ws/chat (`websocket.py`, `chat_socket.py`,
`socket_schemas.py`) has all its turns from there.

A request to POST /caption, /query, /detect or /point goes the same way through `vision.py`, `task_requests.py`,
`tasks.py` and `task_replies.py`: a task has no session, so `model_choice.py` says who does it.

A request to POST /v1/chat/completions goes through `openai/chat_completions.py`: `openai/json_body.py` reads it,
`openai/chat_input.py` puts it into our words (`openai/picture_parts.py` its pictures), `completions.py` is its route,
without a session, and `openai/chat_stream.py` writes the chunks. Under /v1 errors have the shape of
`openai/error_shape.py`.

`history.py`, `image_routes.py`, `debug.py` and `page.py` are the other routes; `tenants.py` says whose they are.
"""

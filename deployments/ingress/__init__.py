"""The HTTP surface. A request to POST /chat, hop by hop:

1. `request_id.py` gives it a name and `body_limit.py` counts its bytes; both stand in front of everything (`app.py`).
2. `chat.py` is the route; `form_body.py` reads multipart, URL-encoded or JSON bodies into `schemas.ChatRequest`.
3. `pictures.py` checks the picture in a bounded thread pool and stores it; what goes on is an ImageRef.
4. `turns.py` opens the turn, streams the answer (`answer.py`, until the `deadline.py`) and closes the turn. It knows
   nothing of HTTP; all surfaces use it.
5. The answer leaves as one JSON object or, through `sse.py`, as events. `connection.py` notices a client that left.
6. Whatever goes wrong becomes one shape of error in `error_replies.py`.

A request to POST /caption, /query, /detect or /point goes the same way through `vision.py`, `task_requests.py`,
`tasks.py` and `task_replies.py`: a task has no session, so `model_choice.py` says who does it.

`history.py`, `image_routes.py`, `debug.py` and `page.py` are the other routes; `tenants.py` says whose they are.
"""

"""The HTTP surface. A request to POST /chat, hop by hop:

1. `request_id.py` gives it a name and `body_limit.py` counts its bytes; both stand in front of everything (`app.py`).
2. `chat.py` is the route; `chat_form.py` reads multipart, URL-encoded or JSON bodies into `schemas.ChatRequest`.
3. `pictures.py` checks the picture in a bounded thread pool and stores it; what goes on is an ImageRef.
4. `turns.py` opens the turn, streams the answer and closes the turn. It knows nothing of HTTP; all surfaces use it.
5. The answer leaves as one JSON object or, through `sse.py`, as events. `connection.py` notices a client that left.
6. Whatever goes wrong becomes one shape of error in `error_replies.py`.

`history.py`, `image_routes.py`, `debug.py` and `page.py` are the other routes; `tenants.py` says whose they are.
"""

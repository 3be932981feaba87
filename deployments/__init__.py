"""Retina's parts. The route of one request, hop by hop:

1. `ingress/app.py` takes the HTTP request; `ingress/chat.py` reads question, picture and settings from it.
2. `images/check.py` looks at the picture's header, decodes it once to be sure, and names it by a keyed hash;
   `images/stores/` keeps its bytes. From here on everybody speaks of an ImageRef.
3. `ingress/turns.py` is the route in one place: open the turn, see that its picture is still stored, stream the
   answer, close the turn.
4. `session_router/service.py` opens the turn: a lease on the session, the model, and the messages that are the prompt.
5. `generator/engine.py` has `generator/sequence_builder.py` render the prompt (`models/<family>.py`), look up what is
   remembered of it (`generator/prefix_cache.py`), and ask for the picture's features where that is not enough. Then it
   prefills and decodes in one pass with everybody else (`generator/scheduler.py` decides, `generator/runner.py` acts).
6. `vision_encoder/encoder.py` answers with features: from `vision_encoder/cache.py`, or by preprocessing and passes
   of the tower (`vision_encoder/batcher.py`).
7. Chunks go back from the generator straight to the ingress (`ingress/running_turn.py`) and out as JSON or server-sent
   events.
8. `session_router/service.py` closes the turn: question and answer are stored at once or not at all.

A task about one picture (caption, query, detect, point) goes through `ingress/vision.py` and `ingress/tasks.py`
instead, without a session and so without steps 4 and 8. So does a conversation that its client holds itself
(`ingress/openai/chat_completions.py`, `ingress/completions.py`). A response (`ingress/responses/`) is a turn with a
record that is stored with it. A stream that clients may come back to runs through `ingress/streams/`; a WebSocket has
no others.

Between processes the hops are Ray Serve handles (`handles.py`, bound in `graph.py`); in one process they are plain
calls (`local.py`). The words that travel stand in `types.py`, the errors in `errors.py`, the settings in `config.py`.
"""

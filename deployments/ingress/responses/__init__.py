"""/v1/responses, as the Open Responses specification has it. A request, step by step:

1. `routes.py` takes it; `request.py` and `input_items.py` say what may be in it, `checks.py` what may not be in it
   together.
2. `plan.py` says what it comes to: `reading.py` looks up items and takes pictures, `opening.py` makes the response that
   is still to be answered. What is stored is a turn in a session, the same ones that POST /chat has; what is not stored
   is a completion.
3. `creation.py` runs it: at once or in the background, in one piece or streamed. A response that goes on from one that
   is no longer the last of its session is begun anew, in a session of its own.
4. `events.py` makes events of what the turn says, `states.py` the response that they end with.
5. `record.py` makes the record that is stored together with the answer; `stored.py` is what stands in it.

`retrieval.py` is what becomes of it afterwards; `conversations.py` shows sessions under /v1/conversations.
`resource.py` has the bodies that clients get, `naming.py` the names that things have here and elsewhere.
"""

"""Who may speak in which session, with which prompt: leases, kept history, the one picture, the model.

`service.py` is the part itself; `records.py` is what surfaces keep beside sessions. What it decides stands in pure
files: `limits.py` (what a request may say), `changes.py` (what taking, giving back and committing make of a session),
`history.py` (which messages are kept) and `image_policy.py` (which picture). `leases.py` waits for a session, in the
lines of `line.py`; `uninterrupted.py` carries storing to its end; `stores/` keeps what must outlive the process.
"""

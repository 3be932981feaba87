"""Settings of Ray Serve that have no place in its config file: environment variables of its processes. No Ray here.

By default whatever arrives in a process of Serve or leaves it is handed from thread to thread there, and each streamed
item is an object of Ray's object store: about 0.3 ms of processor time for each token and hop. Over gRPC and on one
event loop it is less than half of that. The parts keep their event loops free, which is all that this asks of them.
"""

from __future__ import annotations

from collections.abc import Mapping

# Of the parts: graph.py gives it to each replica.
REPLICA_SETTINGS: Mapping[str, str] = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(64 * 2**20),  # its own 4 MiB is less than a long conversation
}
# Of Ray as a whole, where it is `retina serve` that begins it: the HTTP proxy is not ours to configure otherwise.
CLUSTER_SETTINGS: Mapping[str, str] = {**REPLICA_SETTINGS, "RAY_SERVE_PROXY_USE_GRPC": "1"}

"""Several turns about a picture on one WebSocket: python examples/websocket_client.py PICTURE

`pip install websockets`. RETINA_URL says where the service is; ws://127.0.0.1:8000 otherwise.
"""

from __future__ import annotations

import asyncio
import base64
import json
import mimetypes
import os
import sys
from pathlib import Path

from websockets.asyncio.client import ClientConnection, connect


async def main(picture: Path) -> None:
    url = os.environ.get("RETINA_URL", "ws://127.0.0.1:8000").replace("http", "ws", 1)
    async with connect(f"{url}/ws/chat", max_size=None) as socket:
        session = await ask(socket, message="What do you see in this image?", image=to_data_url(picture))
        await ask(socket, message="How many shapes are there?", session_id=session)


async def ask(socket: ClientConnection, **fields: str) -> str:
    """Print the answer as it comes; returns the session's id, for the next turn."""
    await socket.send(json.dumps({"type": "ask", **fields}))
    session = ""
    async for text in socket:
        message = json.loads(text)
        data = message.get("data", {})
        if message["event"] == "start":
            session = data["session_id"]
        elif message["event"] == "chunk":
            print(data["text"], end="", flush=True)
        elif message["event"] == "done":
            print()
            return session
        elif message["event"] == "error":
            raise RuntimeError(data["error"]["message"])
    raise RuntimeError("the socket was closed before the answer was whole")


def to_data_url(picture: Path) -> str:
    media_type = mimetypes.guess_type(picture.name)[0] or "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(picture.read_bytes()).decode()}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(Path(sys.argv[1])))

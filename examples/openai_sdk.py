"""Chat about a picture through the official OpenAI SDK: python examples/openai_sdk.py PICTURE [MODEL]

`pip install openai`. RETINA_URL says where the service is; http://127.0.0.1:8000 otherwise.
"""

from __future__ import annotations

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI


def main(picture: Path, model: str | None) -> None:
    client = OpenAI(base_url=os.environ.get("RETINA_URL", "http://127.0.0.1:8000") + "/v1", api_key="unused")
    model = model or client.models.list().data[0].id

    print("chat completions, a data URL, streamed: ", end="")
    stream = client.chat.completions.create(
        model=model,
        messages=[
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": to_data_url(picture)}},
                    {"type": "text", "text": "What do you see in this image?"},
                ],
            }
        ],
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "" if chunk.choices else "", end="", flush=True)
    print()

    file = client.files.create(file=picture, purpose="vision")
    first = client.responses.create(
        model=model,
        input=[
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "file_id": file.id, "detail": "auto"},
                    {"type": "input_text", "text": "What do you see in this image?"},
                ],
            }
        ],
    )
    print("responses, an uploaded file:", first.output_text)
    second = client.responses.create(model=model, input="How many shapes are there?", previous_response_id=first.id)
    print("responses, the next turn:", second.output_text)
    client.files.delete(file.id)


def to_data_url(picture: Path) -> str:
    media_type = mimetypes.guess_type(picture.name)[0] or "application/octet-stream"
    return f"data:{media_type};base64,{base64.b64encode(picture.read_bytes()).decode()}"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else None)

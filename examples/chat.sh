#!/usr/bin/env bash
# Chat about a picture with curl: examples/chat.sh PICTURE
# RETINA_URL says where the service is; http://127.0.0.1:8000 otherwise.
set -euo pipefail
url=${RETINA_URL:-http://127.0.0.1:8000}
picture=${1:?usage: examples/chat.sh PICTURE}
session=curl-$$

echo "one answer:"
curl --fail-with-body --silent --show-error "$url/chat" \
  -F "message=What do you see in this image?" -F "image=@$picture" -F "session_id=$session"
echo

echo "the next turn, streamed:"
curl --fail-with-body --silent --show-error --no-buffer "$url/chat" \
  -F "message=How many shapes are there?" -F "session_id=$session" -F "stream=true"

echo "chat completions:"
curl --fail-with-body --silent --show-error "$url/v1/chat/completions" \
  -H "Content-Type: application/json" \
  -d '{"messages": [{"role": "user", "content": "Hello, my name is Ada"}]}'
echo

curl --fail-with-body --silent --show-error -X DELETE "$url/chat/history/$session"
echo

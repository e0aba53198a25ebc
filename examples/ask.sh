#!/bin/sh
# Ask a running server with curl: a caption, its stream, and boxes.
#   sh ask.sh [PICTURE [LABEL [ADDRESS]]]
set -eu
picture=${1:-$(dirname "$0")/../mlx_paligemma/demo/shapes.png}
label=${2:-circle}
address=${3:-http://127.0.0.1:8080}

ask() { # the key goes to curl by a pipe: other users of the machine see the arguments of programs
	printf 'header = "Authorization: Bearer %s"\n' "${MLX_PALIGEMMA_API_KEY:-none}" | curl -sS --fail-with-body -K - "$@"
}

body=$(mktemp)
trap 'rm -f "$body"' EXIT
{ # base64 makes a picture too long for an argument
	printf '{"stream": true, "messages": [{"role": "user", "content": ['
	printf '{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
	base64 <"$picture" | tr -d '\n'
	printf '"}}, {"type": "text", "text": "caption en"}]}]}'
} >"$body"

echo "caption"
ask "$address/v1/caption" -F "image=@\"$picture\"" -F language=en
printf '\n\nstreamed, as server-sent events\n'
ask -N "$address/v1/chat/completions" -H "Content-Type: application/json" -d @"$body"
printf 'found\n'
ask "$address/v1/detect" -F "image=@\"$picture\"" --form-string "labels=$label"
echo

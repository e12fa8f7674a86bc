#!/usr/bin/env bash
# Serves a bucket of an S3 server through the disk cache: the first get comes from the store, the second one from the disk.
#
#     make demo-s3
#
# Everything lives in a temporary directory and ends with the script.
set -euo pipefail

home=$(mktemp -d)
started=()
trap 'kill "${started[@]}" 2>/dev/null || true; wait; rm -rf "$home"' EXIT

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
seconds() { local from=$EPOCHREALTIME; "$@"; printf '%s\n' "$from $EPOCHREALTIME" | awk '{printf "%.3f s\n", $2 - $1}'; }

mkdir -p "$home/stores/bucket/prod" "$home/root"
head -c 64M /dev/urandom >"$home/stores/bucket/prod/weights.bin"

say "An S3 server with a bucket"
port=$(python -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
s3s-fs --host 127.0.0.1 --port "$port" --access-key demo --secret-key demo-secret "$home/stores" >"$home/s3.log" 2>&1 &
started+=($!)

cat >"$home/objmapper.toml" <<TOML
disk_cache = "$home/cache"
disk_cache_size = "1GiB"
[origins."/models"]
url = "s3://bucket/prod"
endpoint = "http://127.0.0.1:$port"
allow_http = true
[origins."/models".options]
access_key_id = "demo"
secret_access_key = "demo-secret"
TOML
cat "$home/objmapper.toml"

export OBJMAPPER_SERVER=unix:$home/objmapper.sock
objmapper serve "$home/root" --unix "$home/objmapper.sock" --admin "unix:$home/admin.sock" --config "$home/objmapper.toml" 2>"$home/log" &
started+=($!)
objmapper stat /models/weights.bin --wait 30s

say "The first get fetches 64 MiB from the store"
seconds objmapper get /models/weights.bin -o "$home/first"
say "The second one gets a descriptor of the file in the disk cache"
seconds objmapper get /models/weights.bin -o "$home/second"
cmp "$home/first" "$home/stores/bucket/prod/weights.bin"
cmp "$home/second" "$home/first"

say "The store goes away; what is in the cache is served"
kill "${started[0]}"
objmapper get /models/weights.bin -o "$home/third"
cmp "$home/third" "$home/first" && echo "the same bytes"

say "Figures"
python - "$home/admin.sock" <<'PYTHON' | grep -E '^objmapper_(origin|disk_cache)_'
import socket, sys

with socket.socket(socket.AF_UNIX) as admin:
    admin.connect(sys.argv[1])
    admin.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    print(b"".join(iter(lambda: admin.recv(1 << 16), b"")).decode())
PYTHON

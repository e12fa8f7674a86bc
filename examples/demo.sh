#!/usr/bin/env bash
# Serves the interpreter's own standard library on a Unix socket and on TCP, fetches from it, shows the figures. Everything
# that it makes is in one temporary directory, which it removes. Needs `objmapper` on the PATH: `make demo` sees to that.
set -euo pipefail

root=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
work=$(mktemp -d "${TMPDIR:-/tmp}/objmapper-demo-XXXXXX")
server=

clean_up() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

bold='' dim='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$'\e[1;36m' dim=$'\e[2m' plain=$'\e[0m'
fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# Prints a command line, then runs it as it stands.
try() {
    printf '%s$ %s%s\n' "$dim" "$1" "$plain"
    (set +e +o pipefail; eval "$1")
}

say "1. Serve the $(find "$root" -type f | wc -l) files of the standard library ($root)"
printf '%s$ objmapper serve %s --unix %s/socket --tcp 127.0.0.1:0 --admin unix:%s/admin &%s\n' \
    "$dim" "$root" "$work" "$work" "$plain"
mkfifo "$work/said"
objmapper serve "$root" --unix "$work/socket" --tcp 127.0.0.1:0 --admin "unix:$work/admin" 2>"$work/said" &
server=$!
tcp=
while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
        "objmapper: ready "*)
            tcp=$(grep -o 'tcp://[^ ]*' <<<"$line")
            break
            ;;
    esac
done <"$work/said"
[ -n "$tcp" ] || { echo "the server did not start" >&2; exit 1; }
export OBJMAPPER_SERVER=unix:$work/socket OBJMAPPER_ADMIN=unix:$work/admin tcp work root

say "2. An object by descriptor (Unix socket), by copy and by splice (TCP): the same bytes"
try 'objmapper get /json/decoder.py | sha256sum'
try 'objmapper get /json/decoder.py --mode copy --server "$tcp" | sha256sum'
try 'objmapper get /json/decoder.py --mode splice --server "$tcp" | sha256sum'
try 'sha256sum <"$root/json/decoder.py"'

say "3. A shell pipeline on an object"
try 'objmapper get /this.py | head -n 3'
try 'objmapper get /argparse.py | grep -c "def "'

say "4. Into a file, which appears when it is whole"
try 'objmapper get /argparse.py -o "$work/argparse.py" && cmp "$work/argparse.py" "$root/argparse.py" && echo identical'

say "5. From Python: an open file of one's own, nothing copied"
try "python - <<'PYTHON'
from objmapper_client import Client, ObjectNotFound

with Client() as client:
    with client.open('/argparse.py') as found:
        print(found)
        print(bytes(found.view()[:60]))
    try:
        client.open('/no/such/object')
    except ObjectNotFound as error:
        print('ObjectNotFound:', error)
PYTHON"

say "6. What is no object is refused, with an exit code of its own"
try 'objmapper get /../etc/passwd; echo "exit code $?"'
try 'objmapper get /no/such/object; echo "exit code $?"'

say "7. The server's figures"
try 'objmapper stats'

say "8. Stop: what is under way is finished, then the socket is gone"
kill -TERM "$server"
wait "$server" && echo "the server ended well"
server=
[ ! -e "$work/socket" ] && echo "and has removed its socket"

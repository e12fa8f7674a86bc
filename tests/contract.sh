#!/usr/bin/env bash
# The admin endpoint against its own OpenAPI document: schemathesis asks for whatever the document allows and forbids, and
# fails on a status of 500, on one that is not documented, and on an answer that is not what the document says.
#
#   tests/contract.sh [PYTHON [EXAMPLES]]       installs schemathesis into a folder of its own, and removes it afterwards
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
examples=${2:-200}
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; wait; rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check schemathesis

export OBJMAPPER_ADMIN_TOKEN="a token for an hour"
mkdir "$scratch/root"
"$python" -m objmapper_cli serve "$scratch/root" --unix "$scratch/s" --admin 127.0.0.1:0 2>"$scratch/said" &
server=$!
until grep -q ready "$scratch/said"; do
    kill -0 "$server" || { cat "$scratch/said" >&2; exit 1; }
    sleep 0.1
done
admin=$(sed -n 's/.* admin \(http.*\)/\1/p' "$scratch/said")

cd "$scratch"
# A drain does not end, and after it /readyz answers 503 as it should: last, and by itself.
for part in "--exclude-path /drain" "--include-path /drain"; do
    # shellcheck disable=SC2086
    "$scratch/venv/bin/schemathesis" run "$admin/openapi.json" $part --max-examples "$examples" \
        --header "Authorization: Bearer $OBJMAPPER_ADMIN_TOKEN"
done
if [ "$(wc -l <"$scratch/said")" -ne "$(grep -c -e ready -e 'is served by' -e 'settings' "$scratch/said")" ]; then
    echo "the server complained:" >&2
    cat "$scratch/said" >&2
    exit 1
fi

#!/usr/bin/env bash
# Makes sure that Python 3.11 with venv, a C linker and a Linux that this server runs on are there.
# As root on Debian or Ubuntu it installs what is missing; elsewhere it says what to install.
#
#   tools/system.sh [PYTHON [PACKAGE …]]        PACKAGE: further Debian packages, looked for by their command's name
set -euo pipefail

python=${1:-python3}
shift || true

fail() {
    printf 'objmapper: %s\n' "$@" >&2
    exit 1
}

[ "$(uname -s)" = Linux ] || fail "the server needs Linux 5.6 or newer (openat2); this is $(uname -s)"
oldest=$(printf '5.6\n%s\n' "$(uname -r)" | sort -V | head -n 1)
[ "$oldest" = 5.6 ] || fail "the server needs Linux 5.6 or newer (openat2); this is $(uname -r)"

missing=()
command -v "$python" >/dev/null || missing+=(python3 python3-venv)
if command -v "$python" >/dev/null && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3-venv)
fi
command -v cc >/dev/null || missing+=(gcc libc6-dev)
for package in "$@"; do
    command -v "$package" >/dev/null || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        printf 'objmapper: installing %s\n' "${missing[*]}" >&2
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    else
        fail "missing on this machine: ${missing[*]}" \
            "on Debian or Ubuntu: sudo apt-get install ${missing[*]}"
    fi
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python 3.11 or newer is needed; $python is $("$python" -V)" \
        "name another one with: make PYTHON=/path/to/python3.11 …"

# Makes sure that `cargo` is there and new enough. To be sourced: it sets PATH, and RUSTUP_HOME and CARGO_HOME where the
# toolchain is this project's own, in .rust/.
#
# Looked for in this order: cargo on the PATH, in ~/.cargo/bin, in .rust/; an installed rustup that can fetch one; a new
# toolchain in .rust/, which the package puccinialin (it is what maturin uses) has rustup install there.

_wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' engine/Cargo.toml)
_own=$PWD/.rust

_cargo_is_fit() {
    local version
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    version=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) || return 1
    [ "$(printf '%s\n%s\n' "$_wanted" "$version" | sort -V | head -n 1)" = "$_wanted" ]
}

_use_own() {
    export RUSTUP_HOME=$_own/rustup CARGO_HOME=$_own/cargo PATH=$_own/cargo/bin:$PATH
}

# rust-toolchain.toml asks rustup for stable. Where only other toolchains are installed, the default one is used if it is
# new enough: rustup would download stable.
_use_default_toolchain() {
    local default
    if [ -z "${RUSTUP_TOOLCHAIN:-}" ] && command -v rustup >/dev/null && ! rustup toolchain list 2>/dev/null | grep -q ^stable; then
        default=$(rustup default 2>/dev/null | cut -d ' ' -f 1) || return 0
        if [ -n "$default" ] && RUSTUP_TOOLCHAIN=$default _cargo_is_fit; then
            export RUSTUP_TOOLCHAIN=$default
        fi
    fi
}

_use_default_toolchain
if ! _cargo_is_fit && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH=$HOME/.cargo/bin:$PATH
fi
if ! _cargo_is_fit && [ -x "$_own/cargo/bin/cargo" ]; then
    _use_own
fi
if ! _cargo_is_fit && command -v rustup >/dev/null; then
    echo "objmapper: Rust $_wanted is needed; asking rustup for the stable toolchain" >&2
    if rustup toolchain install stable --profile minimal --component clippy --component rustfmt; then
        export RUSTUP_TOOLCHAIN=stable
    fi
fi
if ! _cargo_is_fit; then
    echo "objmapper: Rust $_wanted is needed; installing a toolchain for this project in .rust/" >&2
    if .venv/bin/pip install --quiet --disable-pip-version-check puccinialin &&
        .venv/bin/python -m puccinialin --location "$_own" --info-json "$_own.json"; then
        rm -f "$_own.json"
        _use_own
        rustup component add clippy rustfmt || true
    fi
fi
if ! _cargo_is_fit; then
    {
        echo "objmapper: no Rust toolchain of $_wanted or newer could be found or fetched."
        echo "objmapper: install one (with rustup, or from your distribution) so that cargo is on the PATH, and try again."
    } >&2
    exit 1
fi

#!/usr/bin/env bash
# Prints the path of a fsck.erofs that reads images of 512-byte blocks; tests use it as a referee.
#
#     scripts/erofs_utils.sh
#
# Debian 12 ships erofs-utils 1.5, which refuses such blocks. So the packages of Debian 13 are unpacked,
# with the C library they need, into .cache/tools, and run with their own dynamic loader; nothing is
# installed. apt fetches them from the mirror that this machine uses, and proves them with Debian's keys.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=trixie
NEEDED=1.8
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
TOOLS=$PWD/.cache/tools
PROGRAM=$TOOLS/erofs-utils-$SUITE/fsck.erofs

fail() {
    printf 'erofs_utils: %s\n' "$*" >&2
    exit 1
}

is_new_enough() {
    local version
    version=$("$1" -V 2>/dev/null | sed -n 's/.* \([0-9][0-9.]*\)[^ ]*$/\1/p;q') || return 1
    [ -n "$version" ] && printf '%s\n' "$NEEDED" "$version" | sort -VC
}

# The address from which this machine has its own release of Debian.
mirror() {
    local codename uri release component
    codename=$(. /etc/os-release && printf %s "${VERSION_CODENAME-}")
    while read -r uri release component; do
        if [ "$release $component" = "$codename main" ]; then
            printf '%s\n' "$uri"
            return
        fi
    done < <(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages')
    return 1
}

# apt with lists, cache and package state of its own: nothing counts as installed, so it brings all.
private_apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/apt.sources" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State="$work/state" -o Dir::State::status="$work/state/status" -o Dir::Cache="$work/cache" \
        -o APT::Sandbox::User=root -o Acquire::Languages=none \
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false "$@" >>"$work/log" 2>&1
}

unpack() {
    local uri package loader
    command -v apt-get >/dev/null || fail "fsck.erofs $NEEDED is needed, and there is no apt-get to fetch it"
    [ -e "$KEYRING" ] || fail "$KEYRING is missing: apt-get install debian-archive-keyring"
    uri=$(mirror) || fail "no Debian archive among apt's sources: install erofs-utils $NEEDED or later"
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/root"
    : >"$work/state/status"
    printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
        "$uri" "$SUITE" "$KEYRING" >"$work/apt.sources"
    private_apt update && private_apt install --yes --no-install-recommends --download-only erofs-utils || {
        tail -n 5 "$work/log" >&2
        fail "erofs-utils of Debian $SUITE cannot be fetched: install erofs-utils $NEEDED or later"
    }
    for package in "$work"/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work/root"; done
    for loader in "$work"/root/usr/lib/*/ld-linux*.so.*; do [ -e "$loader" ] || fail "no dynamic loader"; done
    loader=${loader#"$work/"}
    cat >"$work/fsck.erofs" <<WRAPPER
#!/bin/sh
here=\$(dirname "\$0")
exec "\$here/$loader" --library-path "\$here/${loader%/*}" "\$here/root/usr/bin/fsck.erofs" "\$@"
WRAPPER
    chmod 755 "$work/fsck.erofs"
    is_new_enough "$work/fsck.erofs" || fail "the fsck.erofs of Debian $SUITE does not run here"
    rm -rf "$work/state" "$work/cache" "$work/apt.sources" "$work/log"
}

main() {
    PATH=$PATH:/usr/sbin:/sbin
    local installed
    if installed=$(command -v fsck.erofs) && is_new_enough "$installed"; then
        printf '%s\n' "$installed"
        return
    fi
    if [ ! -x "$PROGRAM" ]; then
        mkdir -p "$TOOLS"
        exec 9>"$TOOLS/erofs-utils.lock"
        flock 9
    fi
    if [ ! -x "$PROGRAM" ]; then
        work=$(mktemp -d "$TOOLS/erofs-utils.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        unpack
        rm -rf "${PROGRAM%/*}"
        chmod 755 "$work"
        mv "$work" "${PROGRAM%/*}"
    fi
    printf '%s\n' "$PROGRAM"
}

main

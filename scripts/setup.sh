#!/usr/bin/env bash
# Brings a Debian machine to where `make demo` or `make test` can run: system packages, and a
# virtual environment in .venv with the versions and hashes of requirements/*.txt.
#
#     scripts/setup.sh demo|test|bench|browser
#
# What is there is left alone: a second run changes nothing, needs no network and takes no time.
# What cannot be is said in one line before anything is changed.
set -euo pipefail

# package=what shows that it is there: a command or a file. The file matters where another package
# may bring the same (containerd from Docker's own archive must not be replaced by Debian's).
DEMO_PACKAGES="
    gcc=gcc
    libc6-dev=/usr/include/stdio.h
    pkg-config=pkg-config
    libfuse3-dev=/usr/include/fuse3/fuse.h
    ca-certificates=/etc/ssl/certs/ca-certificates.crt
    debootstrap=debootstrap
    crun=crun
"
TEST_PACKAGES="
    erofs-utils=mkfs.erofs
    skopeo=skopeo
    podman=podman
    buildah=buildah
    umoci=umoci
    containerd=containerd
    runc=runc
    stargz-snapshotter=ctr-remote
    attr=setfattr
    busybox-static=/usr/share/doc/busybox-static
    zstd=zstd
    libarchive-tools=bsdtar
    docker-registry=docker-registry
    openssl=openssl
    nginx-light=nginx
"
BENCH_PACKAGES="
    curl=curl
    fio=fio
"
BROWSER_PACKAGES="
    chromium=chromium
    fonts-dejavu-core=/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# Runs a command whose output matters only when it fails.
quietly() {
    if ! "$@" >>.cache/setup.log 2>&1; then
        tail -n 25 .cache/setup.log >&2
        return 1
    fi
}

has_file_system() {
    grep -qw "$1" /proc/filesystems || { modprobe -q "$1" && grep -qw "$1" /proc/filesystems; } 2>/dev/null
}

check_machine() {
    [ "$(uname -s)" = Linux ] || fail "lazyfs needs Linux, this is $(uname -s)"
    [ "$(id -u)" = 0 ] || fail "root is needed, to mount file systems and to install packages: try sudo make $1"
    local release
    release=$(uname -r)
    # File-backed EROFS mounts came with Linux 6.12.
    printf '%s\n' 6.12 "$release" | sort -VC || fail "Linux 6.12 or later is needed, this is $release"
    has_file_system erofs || fail "this kernel has no EROFS (CONFIG_EROFS_FS): load or install its erofs module"
    has_file_system overlay || fail "this kernel has no overlayfs: load or install its overlay module"
    [ -c /dev/fuse ] || modprobe -q fuse 2>/dev/null || true
    [ -c /dev/fuse ] || fail "/dev/fuse is missing: modprobe fuse, or give this container --device /dev/fuse"
    unshare --mount true 2>/dev/null ||
        fail "this root may not mount file systems: give this container CAP_SYS_ADMIN (--privileged)"
}

# Sets python, python_id (changes when the interpreter does) and python_packages (what Debian
# packages its own interpreter lacks to make an environment and to build pyfuse3).
find_python() {
    local candidate found="PATH has none"
    for candidate in "${PYTHON:-python3}" python3 python3.11 python3.12 python3.13 python3.14; do
        command -v "$candidate" >/dev/null || continue
        if python_id=$("$candidate" -I -c '
import importlib.util, os, sys, sysconfig
base = os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)
header = os.path.join(sysconfig.get_path("include"), "Python.h")
print(base, "%d.%d.%d" % sys.version_info[:3],
      "venv" if importlib.util.find_spec("ensurepip") else "-",
      "headers" if os.path.exists(header) else "-")
sys.exit(sys.version_info < (3, 11))' 2>/dev/null); then
            found=yes
            break
        fi
        [ -z "$python_id" ] || found="PATH has ${python_id% * *}"
    done
    [ "$found" = yes ] || fail "Python 3.11 or later is needed, $found: install it, or name one with PYTHON="
    local version venv headers
    read -r python version venv headers <<<"$python_id"
    python_id="$python $version $PWD"
    python_packages=""
    local series=${version%.*}
    [ "$venv" = venv ] || python_packages="python$series-venv"
    [ "$headers" = headers ] || python_packages+="${python_packages:+ }libpython$series-dev"
    if [ -n "$python_packages" ]; then
        case $python in
        /usr/bin/*) ;;
        *) fail "$python lacks what Debian has in $python_packages: add it, or name another one with PYTHON=" ;;
        esac
    fi
}

install_packages() {
    local missing=$python_packages entry package sign
    for entry in "$@"; do
        package=${entry%%=*} sign=${entry#*=}
        case $sign in
        /*) [ -e "$sign" ] || missing+=" $package" ;;
        *) command -v "$sign" >/dev/null || missing+=" $package" ;;
        esac
    done
    [ -n "$missing" ] || return 0
    # shellcheck disable=SC2086 # one word each
    set -- $missing
    command -v apt-get >/dev/null || fail "missing, and there is no apt-get to install them: $*"
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive
    # --no-remove: nothing that is on this machine is given up for what is installed here.
    local install=(apt-get install -qq --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 "$@")
    # A fresh machine has no package lists, an old one stale lists; otherwise they need no update.
    "${install[@]}" >>.cache/setup.log 2>&1 && return 0
    quietly apt-get update -qq || fail "apt-get update failed, see .cache/setup.log"
    quietly "${install[@]}" || fail "apt-get install failed, see .cache/setup.log"
}

# .venv/.stamp holds what the environment was made of: the interpreter, and copies of the locks.
make_environment() {
    local lock=$1 stamp=.venv/.stamp file
    for file in "$stamp"/*.txt; do
        if ! cmp -s "$file" "requirements/${file##*/}"; then
            rm -rf .venv
        fi
    done
    if [ "$(cat "$stamp/python" 2>/dev/null)" != "$python_id" ]; then
        say "making .venv with $python"
        rm -rf .venv
        quietly "$python" -m venv .venv || fail "making .venv failed, see .cache/setup.log"
        # These build the rest, so that no build environment is fetched that is not in a lock.
        pip_install --require-hashes -r requirements/build.txt
        mkdir "$stamp"
        cp requirements/build.txt "$stamp/"
        printf '%s\n' "$python_id" >"$stamp/python"
    fi
    # dev.txt holds all of node.txt, at the same versions.
    if ! [ -e "$stamp/$lock" ] && ! [ -e "$stamp/dev.txt" ]; then
        say "installing requirements/$lock"
        pip_install --require-hashes -r "requirements/$lock"
        cp "requirements/$lock" "$stamp/"
    fi
    if ! cmp -s pyproject.toml "$stamp/pyproject.toml"; then
        # compat: a plain path in site-packages, no import hook that every start would pay for.
        pip_install --no-deps -C editable_mode=compat --editable .
        cp pyproject.toml "$stamp/"
    fi
}

pip_install() {
    quietly .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation "$@" ||
        fail "pip install $* failed, see .cache/setup.log"
}

main() {
    local packages=$DEMO_PACKAGES lock=node.txt
    case ${1-} in
    demo) ;;
    test) packages+=$TEST_PACKAGES lock=dev.txt ;;
    bench) packages+=$TEST_PACKAGES$BENCH_PACKAGES lock=dev.txt ;;
    browser) packages+=$TEST_PACKAGES$BROWSER_PACKAGES lock=dev.txt ;;
    *) fail "usage: scripts/setup.sh demo|test|bench|browser" ;;
    esac
    cd "$(dirname "$0")/.."
    PATH=$PATH:/usr/sbin:/sbin
    if [ -z "${LAZYFS_SETUP_LOCKED-}" ]; then
        mkdir -p .cache
        # -o: a service that a package starts must not inherit the lock.
        LAZYFS_SETUP_LOCKED=1 exec flock -o .cache/setup.lock "$0" "$1"
    fi
    check_machine "$1"
    find_python
    # shellcheck disable=SC2086 # one word each
    install_packages $packages
    make_environment "$lock"
}

main "$@"

#!/usr/bin/env bash
# Removes all that make and the tests made in this checkout: programs of .venv that still run,
# mounts, downloads, images, the environment and every cache. System packages stay.
set -euo pipefail
cd "$(dirname "$0")/.."

GENERATED=(.venv .cache demo-out build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache)

# Programs that run from this checkout's environment.
running() {
    local directory program
    for directory in /proc/[0-9]*; do
        { read -r -d '' program <"$directory/cmdline"; } 2>/dev/null || continue
        case $program in "$PWD"/.venv/bin/*) printf '%s\n' "${directory#/proc/}" ;; esac
    done
}

mounts_below() {
    local fields
    while read -r -a fields; do printf '%b\n' "${fields[4]}"; done </proc/self/mountinfo |
        { grep -F "$1/" || true; } | sort -r
}

end_programs() {
    local pid deadline=$((SECONDS + 10))
    for pid in $(running); do kill -TERM "$pid" 2>/dev/null || true; done
    while [ -n "$(running)" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    for pid in $(running); do kill -KILL "$pid" 2>/dev/null || true; done
}

end_programs
for name in .cache demo-out; do
    mounts_below "$PWD/$name" | while read -r mount; do umount "$mount" 2>/dev/null || umount -l "$mount"; done
done
rm -rf --one-file-system -- "${GENERATED[@]}" ./*.egg-info
find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

#!/usr/bin/env bash
# Runs a test command so that nothing of it outlives it, however it ends.
#
#     scripts/run-tests.sh COMMAND [ARGUMENT...]
#
# The command runs in mount and process namespaces of its own, and has one directory for all its
# files (TMPDIR, LAZYFS_TEST_DIR). When it ends, what it left behind is named and makes the run
# fail; then the namespaces end, and with them every process and mount, and the directory goes.
# The kernel does the same if this script is killed; the next run removes the directory.
set -euo pipefail

GRACE_AFTER_END=30     # seconds for processes that are just ending, on a machine that is busy
GRACE_AFTER_SIGNAL=60  # seconds for the tests' own clean-up

say() { printf 'run-tests: %s\n' "$*" >&2; }

# Waits for a child, through the signals that end `wait` early; leaves its exit code in `status`.
await() {
    while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
    status=0
    wait "$1" || status=$?
}

main() {
    local base=${TMPDIR:-/tmp} directory stale lock child
    # One at a time from here to the lock: a directory without a lock is what a killed run left.
    exec {lock}<"$base"
    flock "$lock"
    for stale in "$base"/lazyfs-test.*/; do
        if [ -d "$stale" ] && flock -n "$stale" true; then rm -rf --one-file-system "$stale"; fi
    done
    # Lower case: podman makes an image's name of the path that it is read from.
    directory=$base/lazyfs-test.$$-$RANDOM
    mkdir -m 700 "$directory"
    exec 9<"$directory"
    flock 9
    exec {lock}<&-

    # Job control gives the child a process group of its own and an interrupt that is not ignored:
    # it hears of signals only from here, once.
    set -m
    export TMPDIR=$directory LAZYFS_TEST_DIR=$directory
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc \
        "$0" --inside "$@" </dev/null 9<&- &
    child=$!
    trap 'forward "$child" INT' INT
    trap 'forward "$child" TERM' TERM HUP
    await "$child"
    if ! rm -rf --one-file-system "$directory"; then
        say "$directory could not be removed"
        [ "$status" != 0 ] || status=1
    fi
    exit "$status"
}

# Passes a signal on to the first process of the namespaces, the child of unshare, which ignores it.
forward() {
    local first
    first=$(<"/proc/$1/task/$1/children")
    # shellcheck disable=SC2086 # the file ends in a blank
    kill -s "$2" $first || true
} 2>/dev/null

inside() {
    local mounts_before command
    mounts_before=$(mount_points)
    set -m
    "$@" &
    command=$!
    trap 'interrupt "$command"' INT TERM
    await "$command"
    trap '' INT TERM
    report_left_behind "$mounts_before" || [ "$status" != 0 ] || status=1
    exit "$status"
}

# The first signal asks the tests to clean up after themselves, a second one does not wait for it.
interrupt() {
    if [ -n "${interrupted-}" ]; then
        kill -KILL -1
        return
    fi
    interrupted=yes
    say "interrupted, cleaning up"
    kill -INT -- "-$1" 2>/dev/null || true
    (
        sleep "$GRACE_AFTER_SIGNAL"
        say "the tests did not end within $GRACE_AFTER_SIGNAL s"
        kill -KILL -- "-$1"
    ) &
    watchdog=$!
}

mount_points() {
    local fields
    while read -r -a fields; do printf '%b\n' "${fields[4]}"; done </proc/self/mountinfo | sort
}

# Those of containers that lazyfs ran in this process namespace; others may be of other test runs.
cgroups() {
    find /sys/fs/cgroup -maxdepth 2 -type d -name "lazyfs-$(stat -L -c %i /proc/self/ns/pid)-*" 2>/dev/null | sort
}

# Those on files of these tests: device and file.
loops() {
    local device file
    losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | while read -r device file; do
        case $file in "$LAZYFS_TEST_DIR"/*) printf '%s %s\n' "$device" "$file" ;; esac
    done
}

processes() {
    local directory pid state
    for directory in /proc/[0-9]*; do
        pid=${directory#/proc/}
        [ "$pid" != $$ ] && [ "$pid" != "$BASHPID" ] || continue
        # A zombie is a process that has ended.
        { read -r _ <"$directory/stat" && state=$(sed 's/.*) //; s/ .*//' "$directory/stat"); } 2>/dev/null || continue
        [ "$state" != Z ] && [ -d "$directory" ] || continue
        printf '%s\n' "$pid"
    done
}

report_left_behind() {
    local pid mount cgroup device file found=0 deadline=$((SECONDS + GRACE_AFTER_END))
    if [ -n "${watchdog-}" ]; then
        kill -KILL -- "-$watchdog" || true
        wait "$watchdog" || true
    fi 2>/dev/null
    # The kernel takes apart what a process held a moment after its end.
    while [ -n "$(processes)$(cgroups)$(loops)" ] && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
    for pid in $(processes); do
        say "left behind: process $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c1-200)"
        found=1
    done
    while read -r mount; do
        say "left behind: mount $mount"
        found=1
    done < <(comm -13 <(printf '%s\n' "$1") <(mount_points))
    # Control groups and loop devices belong to no namespace, so these are taken back here.
    while read -r cgroup; do
        say "left behind: control group $cgroup"
        rmdir "$cgroup" || true
        found=1
    done < <(cgroups)
    while read -r device file; do
        say "left behind: loop device $device on $file"
        losetup --detach "$device" || true
        found=1
    done < <(loops)
    return "$found"
}

if [ "${1-}" = --inside ]; then
    shift
    inside "$@"
else
    main "$@"
fi

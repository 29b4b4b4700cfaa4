#!/usr/bin/env bash
# Builds nerdctl and BuildKit into .cache/tools/clients, for tests/snapshotter/test_clients.py. Needs Go; some minutes.
set -eu
cd "$(dirname "$0")/.."
target=$PWD/.cache/tools/clients
[ ! -x "$target/nerdctl" ] || [ ! -x "$target/buildkitd" ] || exit 0
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$target" "$work/buildkit" "$work/nerdctl" "$work/tigron/tig"
export CGO_ENABLED=0 GOFLAGS="-mod=mod -buildvcs=false"

# Its go.mod excludes versions, which `go install` refuses.
cd "$work/buildkit"
go mod init clients
go get github.com/moby/buildkit@v0.34.2 github.com/moby/buildkit/cmd/buildctl github.com/moby/buildkit/cmd/buildkitd
go build -o "$target/" github.com/moby/buildkit/cmd/buildctl github.com/moby/buildkit/cmd/buildkitd

# The framework of its tests, a module that is not published, is named by a package of the program: its one type will do.
cd "$work/tigron"
printf 'module github.com/containerd/nerdctl/mod/tigron\n\ngo 1.22\n' >go.mod
printf 'package tig\n\ntype T interface {\n\tHelper()\n\tFail()\n\tFailNow()\n\tLog(args ...any)\n\tName() string\n\tTempDir() string\n}\n' >tig/tig.go
cd "$work/nerdctl"
go mod init clients
go mod edit -replace github.com/containerd/nerdctl/mod/tigron="$work/tigron"
go get github.com/containerd/nerdctl/v2@v2.2.1
go build -o "$target/" github.com/containerd/nerdctl/v2/cmd/nerdctl

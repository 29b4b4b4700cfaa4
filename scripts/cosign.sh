#!/usr/bin/env bash
# Builds cosign into .cache/tools/cosign, for tests/daemon/test_signatures.py. Needs Go; some minutes.
set -eu
cd "$(dirname "$0")/.."
target=$PWD/.cache/tools/cosign
[ ! -x "$target/cosign" ] || exit 0
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
mkdir -p "$target"
CGO_ENABLED=0 GOPATH="$work" GOBIN="$target" go install github.com/sigstore/cosign/v2/cmd/cosign@v2.6.5

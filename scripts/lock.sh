#!/usr/bin/env bash
# Pins everything again, to the newest versions that pyproject.toml allows: `make lock`.
#
#     build.txt   what builds pyfuse3 and lazyfs itself from source; installed first
#     dev.txt     all: what a node needs, and what tests, types and lint need
#     node.txt    what a node needs, at the versions of dev.txt
#     ci.txt      what convert, copy and check need: ready wheels alone
set -euo pipefail
cd "$(dirname "$0")/.."

export CUSTOM_COMPILE_COMMAND="make lock"

compile() {
    .venv/bin/python -m piptools compile --quiet --upgrade --generate-hashes --allow-unsafe --strip-extras \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host "$@"
}

compile --output-file requirements/build.txt requirements/build.in
compile --extra node --extra dev -c requirements/build.txt --output-file requirements/dev.txt pyproject.toml
compile --extra node -c requirements/dev.txt --output-file requirements/node.txt pyproject.toml
compile -c requirements/dev.txt --output-file requirements/ci.txt pyproject.toml

#!/usr/bin/env bash
# Generates the Python of every .proto file anew, beside it; run it after changing one, and commit the result.
set -euo pipefail
cd "$(dirname "$0")/.."

mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.proto')
.venv/bin/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. "${files[@]}"

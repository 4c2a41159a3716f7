#!/bin/bash
# Installs vLLM and LMDeploy, each in an environment of its own (their pins clash with ours and with each other), and
# their commands in PREFIX/bin, where no Python is: what goes on PATH.
#
#   bash jobs/engines.sh /shared/engines                  # both, or behind the folder the names of those wanted
#
# Needs: uv, on PATH or in .venv (`make setup`), and a Python 3.11; on Slurm, a PREFIX that all nodes see.
# Takes: 10.4 GB and 70 s for vLLM, 7.8 GB and 50 s for LMDeploy, both measured with uv's cache empty.
set -euo pipefail
prefix="$(realpath -m "${1:?say where: bash jobs/engines.sh PREFIX}")"
shift
jobs="$(dirname "$(realpath "$0")")"
PATH="${PATH}:${jobs}/../.venv/bin"
mkdir -p "${prefix}/bin"

[ "$#" -gt 0 ] || set -- vllm lmdeploy
for engine in "$@"; do
  uv venv --quiet --allow-existing --python 3.11 "${prefix}/${engine}"
  uv pip install --compile-bytecode --python "${prefix}/${engine}" --require-hashes -r "${jobs}/${engine}.lock"
  # An engine finds its own tools (ninja, nvcc) beside itself, and nobody else does.
  # shellcheck disable=SC2016
  printf '#!/bin/sh\nPATH="%s:${PATH}" exec "%s" "$@"\n' "${prefix}/${engine}/bin" "${prefix}/${engine}/bin/${engine}" \
    > "${prefix}/bin/${engine}"
  chmod +x "${prefix}/bin/${engine}"
done

#!/bin/bash
# Installs vLLM and LMDeploy, each in an environment of its own (their pins clash with ours and with each other), and
# their commands in PREFIX/bin, where no Python is: what goes on PATH.
#
#   bash jobs/engines.sh /shared/engines                  # both, or behind the folder the names of those wanted
#
# Needs: uv, on PATH or in .venv (`make setup`), and a Python 3.11; on Slurm, a PREFIX that all nodes see.
# Takes: 9.4 GB and 120 s for vLLM, 7.7 GB and 36 s for LMDeploy (two cores, compiling included).
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

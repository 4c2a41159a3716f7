#!/bin/bash
# Builds both images and pushes them: REGISTRY/sonify:gpu and REGISTRY/sonify:cpu, the names that the files here have.
#
#   bash jobs/build.sh REGISTRY            # such as ghcr.io/you; put the same name in the files that you use
#   sed -i 's|REGISTRY/|ghcr.io/you/|' jobs/*.yaml
#
# Needs: docker with BuildKit, on x86-64, logged in to the registry (`docker login`); 70 GB of disk.
# Takes: not measured.
set -euo pipefail
registry="${1:?say which: bash jobs/build.sh REGISTRY}"
cd "$(dirname "$(realpath "$0")")/.."
for target in cpu gpu; do
  DOCKER_BUILDKIT=1 docker build --platform linux/amd64 --target "${target}" -f jobs/Dockerfile -t "${registry}/sonify:${target}" .
  docker push "${registry}/sonify:${target}"
done

#!/bin/bash
# One job on a Ray of its own on this machine, beside whatever Ray runs here: its folder, ports and token are its own, it
# listens on loopback only, and it ends with the job. No other Ray is stopped, and ~/.ray is neither read nor written.
#
#   bash jobs/one-machine.sh python -m sonify run --config configs/sonify/demo.yaml features=null run_dir=$PWD/runs/job \
#     images.path=$PWD/runs/demo/sample/photos audio.sources.0.path=$PWD/runs/demo/sample/sounds
#
# Needs: .venv-light or .venv (`make demo`, `make setup`); absolute paths, for a job runs in a copy of this checkout.
# Takes: 15 s more than the command alone (two cores).
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
PATH="${PWD}/.venv/bin:${PWD}/.venv-light/bin:${PATH}"
unset RAY_ADDRESS

export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN
folder="$(mktemp -d /tmp/sonify-ray.XXXXXX)"
read -r -a ports <<< "$(python -c '
import socket
probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(9)]
print(*(probe.getsockname()[1] for probe in probes))')"

ray start --head --block --temp-dir "${folder}" --node-ip-address 127.0.0.1 --dashboard-host 127.0.0.1 \
  --port "${ports[0]}" --dashboard-port "${ports[1]}" --dashboard-agent-listen-port "${ports[2]}" \
  --dashboard-agent-grpc-port "${ports[3]}" --runtime-env-agent-port "${ports[4]}" --metrics-export-port "${ports[5]}" \
  --node-manager-port "${ports[6]}" --object-manager-port "${ports[7]}" --ray-client-server-port "${ports[8]}" \
  --min-worker-port 0 --max-worker-port 0 --object-store-memory 100000000 --disable-usage-stats &> "${folder}/ray.log" &
ray="$!"
# Its end is the end of all that it has started, and of nothing else.
trap 'kill "${ray}"; wait "${ray}" || true; rm -rf "${folder}"' EXIT
until (: < "/dev/tcp/127.0.0.1/${ports[1]}") 2> /dev/null; do
  kill -0 "${ray}" 2> /dev/null || { cat "${folder}/ray.log" >&2; exit 1; }
  sleep 0.2
done
ray job submit --address "http://127.0.0.1:${ports[1]}" --working-dir . --runtime-env jobs/runtime-env.yaml -- "$@"

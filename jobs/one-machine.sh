#!/bin/bash
# One job on a Ray of its own on this machine, beside whatever Ray runs here: its folder, ports and token are its own, it
# listens on loopback only, and it ends with the job. No other Ray is stopped, and ~/.ray is neither read nor written.
# It ends with the job's own exit code. Ctrl-C, SIGTERM and SIGHUP end the job first, which takes some seconds.
#
#   bash jobs/one-machine.sh python -m sonify run --config configs/sonify/demo.yaml features=null run_dir=$PWD/runs/job \
#     images.path=$PWD/runs/demo/sample/photos audio.sources.0.path=$PWD/runs/demo/sample/sounds
#
# Needs: Linux; .venv-light or .venv (`make demo`, `make setup`); absolute paths, for a job runs in a copy of this checkout.
# Takes: 25 s for the demo, which takes 20 without it (two cores).
set -euo pipefail
if [[ "$#" == 0 ]]; then
  echo "one-machine.sh: no command: bash jobs/one-machine.sh COMMAND..." >&2
  exit 2
fi
cd "$(dirname "$(realpath "$0")")/.."
PATH="${PWD}/.venv/bin:${PWD}/.venv-light/bin:${PATH}"
unset RAY_ADDRESS

export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN
# Ray's one switch for loopback, meant for laptops; without it most of its ports listen on every interface.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
folder="$(mktemp -d /tmp/sonify-ray.XXXXXX)"
export ONE_MACHINE_FOLDER="${folder}" # whatever this Ray and its job start is known by it
ray="" submit=""

running() {
  grep -slF "ONE_MACHINE_FOLDER=${folder}" /proc/[0-9]*/environ | tr -dc '0-9\n'
}

# Its end is the end of all that it has started, and of nothing else. Asked to end, a raylet takes half a minute, and has
# nothing to save by then: the job has ended.
end() {
  local code="$1" signal left
  set +e
  trap '' INT TERM HUP PIPE
  if [[ -s "${folder}/code" ]]; then
    code="$(< "${folder}/code")"
  elif [[ -n "${submit}" ]]; then
    echo "one-machine.sh: waits for the job to end, and for its Ray: some seconds" >&2
    timeout -k 1 15 ray job stop --address "http://127.0.0.1:${ports[1]}" job &> /dev/null
  fi
  export -n ONE_MACHINE_FOLDER # so that what looks for them is none of them
  for signal in TERM KILL KILL KILL; do
    mapfile -t left < <(running) # workers and the job are in no group of Ray's
    [[ "${#left[@]}" != 0 ]] || break
    kill "-${signal}" -- "-${ray}" "${left[@]}"
    sleep 0.5
  done 2> /dev/null
  rm -rf "${folder}"
  exit "${code}"
}
trap 'end "$?"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

read -r -a ports <<< "$(python -c '
import socket
probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(9)]
print(*(probe.getsockname()[1] for probe in probes))')"
setsid ray start --head --block --temp-dir "${folder}" --node-ip-address 127.0.0.1 --dashboard-host 127.0.0.1 \
  --port "${ports[0]}" --dashboard-port "${ports[1]}" --dashboard-agent-listen-port "${ports[2]}" \
  --dashboard-agent-grpc-port "${ports[3]}" --runtime-env-agent-port "${ports[4]}" --metrics-export-port "${ports[5]}" \
  --node-manager-port "${ports[6]}" --object-manager-port "${ports[7]}" --ray-client-server-port "${ports[8]}" \
  --min-worker-port 0 --max-worker-port 0 --object-store-memory 100000000 --disable-usage-stats &> "${folder}/ray.log" &
ray="$!"
disown "${ray}" # no word of its end from the shell
until (: < "/dev/tcp/127.0.0.1/${ports[1]}") 2> /dev/null; do
  kill -0 "${ray}" 2> /dev/null || { cat "${folder}/ray.log" >&2; exit 1; }
  sleep 0.2
done

# Ray says of a job only whether it failed: a file brings its exit code. In the background, for a shell that waits for a
# command in the foreground hears of a signal after it.
# shellcheck disable=SC2016
ray job submit --address "http://127.0.0.1:${ports[1]}" --submission-id job --working-dir . \
  --runtime-env jobs/runtime-env.yaml -- \
  bash -c '"$@"; code="$?"; echo "${code}" > "$0"; exit "${code}"' "${folder}/code" "$@" &
submit="$!"
wait "${submit}"

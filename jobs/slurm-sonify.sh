#!/bin/bash
# A run on several Slurm nodes: a Ray cluster for the time of the job, then the run. Submitted again, it resumes; when
# its time runs out it goes into the queue again by itself.
#
#   sbatch --nodes 4 jobs/slurm-sonify.sh run_dir=/shared/runs/sam images.path=/shared/sa1b \
#     audio.sources.0.path=/shared/audioset/balanced_train \
#     audio.sources.0.segments=/shared/audioset/balanced_train_segments.csv \
#     audio.sources.0.labels=/shared/audioset/class_labels_indices.csv \
#     audio.sources.1.path=/shared/fsd50k audio.sources.2.path=/shared/bbc
#
# Needs: on a disk that all nodes see: this checkout and its .venv (`make setup`, with a Python that all nodes have), the
# engines (`bash jobs/engines.sh engines`), the models (`bash jobs/fetch-models.sh models sonify`), the input and
# run_dir; an NVIDIA driver of 580 or newer. CONFIG=configs/sonify/laptop.yaml chooses another configuration, MODELS=DIR
# another folder of models, INTERFACE=ib0 the network of the nodes (else that of the default route); arguments are
# overrides. `--gpus-per-node` and `--nodes` are as many as there are.
# Takes: Ray's start, a minute; then what the run takes.
#SBATCH --job-name=sonify
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gpus-per-node=8
#SBATCH --time=48:00:00
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR}"
export PATH="${PWD}/.venv/bin:${PWD}/engines/bin:${PATH}"
export HF_HOME="${MODELS:-${PWD}/models}"
config="${CONFIG:-configs/sonify/sam.yaml}"
case "${config}" in
  */sam.yaml | */sam_laion.yaml) set -- "concepts.extractors.1.model=${HF_HOME}/cogvlm-chat-hf" "$@" ;;
esac

# Whoever reaches an open Ray port runs code there: one token a job, in the nodes' environment and nowhere else.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN
# A `ray start` takes up to half a minute where a disk is slow, and Ray's own limit for all of them is 30 s.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=900

# The head's address on that interface: `hostname --ip-address` is 127.0.1.1 where /etc/hosts says so, as Debian's does.
head="$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)"
# shellcheck disable=SC2016
find_address='ip -4 -oneline address show scope global dev "${INTERFACE:-$(ip -4 route show default | grep -o "dev [^ ]*" | head -n 1 | cut -c 5-)}"'
address="$(srun --nodes=1 --ntasks=1 -w "${head}" bash -c "${find_address}" | grep -o 'inet [0-9.]*' | head -n 1 | cut -c 6-)"
export RAY_ADDRESS="${address:?no address on ${head}: set INTERFACE to the name of its network interface}:6379"

trap 'scontrol requeue "${SLURM_JOB_ID}"' USR1
# Starts Ray on every node, runs the command on the head once all have joined, and stops Ray: every Ray of this user on
# these nodes, hence --exclusive. A node that is lost does not end the job.
srun --kill-on-bad-exit=0 --cpu-bind=none ray symmetric-run --address "${RAY_ADDRESS}" --min-nodes "${SLURM_JOB_NUM_NODES}" -- \
  python -m sonify run --config "${config}" "$@" &
wait "$!"

#!/bin/bash
# Training on the 8 GPUs of a node, or of several nodes: one process a GPU. When its time runs out it saves and goes into
# the queue again by itself; submitted again, it resumes from the last checkpoint.
#
#   sbatch jobs/slurm-train.sh data.runs.0=/shared/runs/sam run_dir=/shared/runs/pixart
#   sbatch --nodes 2 jobs/slurm-train.sh data.runs.0=/shared/runs/sam run_dir=/shared/runs/pixart
#
# Needs: on a disk that all nodes see: this checkout and its .venv (`make setup`, with a Python that all nodes have), the
# models (`bash jobs/fetch-models.sh models train`), a run of sonify with features; an NVIDIA driver of 580 or newer.
# batch.per_device times the number of GPUs in all must divide batch.total. CONFIG=... chooses another configuration,
# MODELS=DIR another folder of models, INTERFACE=ib0 the network of the nodes (else that of the default route);
# arguments are overrides. `--cpus-per-task` is a node's CPUs by its GPUs, at most.
# Takes: not measured. No torchrun: it ends with a code of its own after SIGTERM, by which nobody knows to queue it again,
# and kills its processes after 30 s (--shutdown-timeout). So Slurm starts them: they have the five minutes of --signal,
# and a minute where one of them has failed and the others wait for it.
#SBATCH --job-name=sonify-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --gpus-per-node=8
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR}"
export PATH="${PWD}/.venv/bin:${PATH}"
export HF_HOME="${MODELS:-${PWD}/models}"
config="${CONFIG:-configs/train/pixart_xl_512.yaml}"

head="$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)"
# shellcheck disable=SC2016
find_address='ip -4 -oneline address show scope global dev "${INTERFACE:-$(ip -4 route show default | grep -o "dev [^ ]*" | head -n 1 | cut -c 5-)}"'
address="$(srun --nodes=1 --ntasks=1 -w "${head}" bash -c "${find_address}" | grep -o 'inet [0-9.]*' | head -n 1 | cut -c 6-)"
export MASTER_ADDR="${address:?no address on ${head}: set INTERFACE to the name of its network interface}"
export MASTER_PORT=29500 WORLD_SIZE="${SLURM_NTASKS}" OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK}"

status=0
# shellcheck disable=SC2016
srun --wait=60 --cpus-per-task="${SLURM_CPUS_PER_TASK}" \
  bash -c 'RANK="${SLURM_PROCID}" LOCAL_RANK="${SLURM_LOCALID}" exec python -m train.pixart "$@"' -- \
  --config "${config}" devices="${SLURM_NTASKS}" "$@" || status="$?"
if [ "${status}" -eq 130 ]; then # saved after SIGTERM
  scontrol requeue "${SLURM_JOB_ID}"
fi
exit "${status}"

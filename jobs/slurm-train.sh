#!/bin/bash
# Training on the 8 GPUs of a node, or of several nodes. Submitted again, it resumes from the last checkpoint.
#
#   sbatch jobs/slurm-train.sh data.runs.0=/shared/runs/sam run_dir=/shared/runs/pixart
#   sbatch --nodes 2 jobs/slurm-train.sh devices=16 data.runs.0=/shared/runs/sam run_dir=/shared/runs/pixart
#
# Needs: this checkout and its .venv on a disk that all nodes see (`make setup` there), a run of sonify with features.
# `devices` is the number of GPUs in all; batch.per_device times devices must divide batch.total. CONFIG=... chooses
# another configuration; arguments are its overrides.
#SBATCH --job-name=sonify-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR}"
export PATH="${PWD}/.venv/bin:${PATH}"
config="${CONFIG:-configs/train/pixart_xl_512.yaml}"

if [ "${SLURM_JOB_NUM_NODES}" -eq 1 ]; then
  exec srun python -m train.pixart --config "${config}" "$@"
fi
head="$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)"
exec srun torchrun --nnodes="${SLURM_JOB_NUM_NODES}" --nproc-per-node=8 --rdzv-backend=c10d \
  --rdzv-id="${SLURM_JOB_ID}" --rdzv-endpoint="${head}:29500" -m train.pixart --config "${config}" "$@"

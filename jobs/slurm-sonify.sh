#!/bin/bash
# A run on several Slurm nodes: a Ray cluster for the time of the job, then the run. Submitted again, it resumes.
#
#   sbatch --nodes 4 jobs/slurm-sonify.sh run_dir=/shared/runs/sam images.path=/shared/sa1b
#
# Needs: this checkout and its .venv on a disk that all nodes see (`make setup` there), the input and run_dir as well.
# CONFIG=configs/sonify/laptop.yaml chooses another configuration; arguments are its overrides.
#SBATCH --job-name=sonify
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=48:00:00
#SBATCH --no-kill
set -euo pipefail
cd "${SLURM_SUBMIT_DIR}"
export PATH="${PWD}/.venv/bin:${PATH}"

# Whoever reaches an open Ray port runs code there: one token a job, in the nodes' environment and nowhere else.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN

head="$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)"
address="$(srun --nodes=1 --ntasks=1 -w "${head}" hostname --ip-address | cut -d ' ' -f 1):6379"
export RAY_ADDRESS="${address}"

# Starts Ray on every node, runs the command on the head once all have joined, and stops Ray: every Ray of this user on
# these nodes, hence --exclusive. A node that is lost does not end the job.
srun --kill-on-bad-exit=0 ray symmetric-run --address "${address}" --min-nodes "${SLURM_JOB_NUM_NODES}" -- \
  python -m sonify run --config "${CONFIG:-configs/sonify/sam.yaml}" "$@"

#!/bin/bash
# One run on the machines of a Slurm job, one process a GPU:
#     sbatch --nodes 2 docs/slurm.sh configs/paper/alfworld_qwen3_4b.toml --run-dir runs/alfworld
#     sbatch --nodes 4 docs/slurm.sh --resume runs/alfworld        # any number of processes goes on
# Options before the script's name replace those below: without GPUs, --gpus-per-node 0 --ntasks-per-node 2.
#SBATCH --job-name agentrl
#SBATCH --ntasks-per-node 8
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 8
#SBATCH --time 24:00:00
#SBATCH --signal USR1@600
# Ten minutes before its time is over the run saves a checkpoint at the end of a batch and leaves.

# Where machines have several networks, name the fast one:
#     export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}

# A process that fails ends the others: they could only wait for it. Every task sees all GPUs of its machine.
exec srun --kill-on-bad-exit=1 --cpus-per-task "$OMP_NUM_THREADS" bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
    exec python -m agentrl.train "$@"' agentrl "$@"

#!/bin/bash
# A job of Slurm, printed by selfsight @VERSION@. Start it with: sbatch FILE
# Other options of Slurm: further lines #SBATCH, or before FILE: sbatch --qos=long FILE
@OPTIONS@
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@@BEFORE@

# shellcheck disable=SC2016,SC2329 # quoted values are none of the shell's; a trap calls `save`
cd -- @FOLDER@ || exit 1
run=@RUN@
command=(@COMMAND@)

newest() { # print the step of the run's newest checkpoint, 0 if there is none
    local file step=0
    for file in "$run"/checkpoints/step-*; do
        if [[ ${file##*/} =~ ^step-([0-9]+)\.[0-9a-f]{16}\.[a-z]+$ ]]; then
            ((10#${BASH_REMATCH[1]} > step)) && step=$((10#${BASH_REMATCH[1]}))
        fi
    done
    echo "$step"
}

save() { # SIGTERM for torchrun on every machine, which passes it on; srun itself would kill them
    echo "selfsight: the time of this job ends in @BEFORE@ seconds or less: saving" >&2
    scancel --signal=TERM "$SLURM_JOB_ID"
}

before=$(newest)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=@CPUS@ # of each process; torchrun would set 1
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=@BEFORE@ # seconds that torchrun waits until it is saved

trap save USR1
srun --ntasks="$SLURM_JOB_NUM_NODES" --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 \
    @PYTHON@ -m torch.distributed.run \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node=@GPUS@ --max-restarts=0 \
    --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" \
    --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" \
    --no-python "${command[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do
    wait "$step" # a signal ends it early
done
wait "$step"
code=$?

((code == 0)) && exit 0
if (($(newest) > before)); then
    echo "selfsight: saved after step $(newest); this job goes back into the queue" >&2
    exec scontrol requeue "$SLURM_JOB_ID"
fi
echo "selfsight: no checkpoint since step $before, so this job does not go back into the queue" >&2
exit "$code"

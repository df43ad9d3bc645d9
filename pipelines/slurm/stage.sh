#!/bin/bash
# One job: stage.sh JOB ITERATION GOALS. make runs on the job's first node, for these goals (apart by commas; `dapo-stages
# config --jobs` says them), and starts the stage on all of them by srun.
#
#   setup    the run's configuration, starting policy, data, and the evaluation of its start
#   rollout  score (score-attention, weight-tokens)  train  finish (evaluate, report, prune)
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=pipelines/slurm/cluster.env
. "$CLUSTER"
unset CONFIG  # make would treat an empty one from the environment as given
export SRUN_CPUS_PER_TASK=$CPUS_PER_NODE  # srun does not inherit it from the job
stage=$1 iteration=$2 nodes=$SLURM_JOB_NUM_NODES
IFS=, read -ra goals <<< "$3"
python=${PYTHON:-$PY} launch=processes engine=
arguments=("RUN=$RUN" "ITER=$iteration")
case $stage in
  setup)
    engine=$EVALUATE_ENGINE prefix=EVALUATE goals=("${goals[@]/#/training_logs/$RUN/}")
    arguments=("RUN=$RUN" "LAG=$LAG" ${CONFIG_FILE:+"CONFIG=$CONFIG_FILE"} ${SET:+"SET=$SET"}) ;;
  rollout) engine=$ROLLOUT_ENGINE prefix=ROLLOUT python=${ROLLOUT_PYTHON:-$python} ;;
  score) prefix=SCORE ;;
  train) prefix=TRAIN launch=$TRAIN_LAUNCH ;;
  finish) engine=$EVALUATE_ENGINE prefix=EVALUATE arguments=("RUN=$RUN" "ITERS=$iteration" "EVAL_EVERY=$EVAL_EVERY") ;;
  *) echo "$0: $stage is not a job. Use setup, rollout, score, train or finish." >&2; exit 2 ;;
esac
case $engine in vllm|server) launch=1 python=${ROLLOUT_PYTHON:-$python} ;; esac
hosts=HEAD_NODE
[ -n "$DRY_RUN" ] || hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
arguments+=(
  "${prefix}_PYTHON=srun --nodes=$nodes --ntasks-per-node=1 --kill-on-bad-exit=1${SRUN_OPTIONS:+ $SRUN_OPTIONS} $SCRIPTS/node.sh $python"
  "${prefix}_LAUNCH=$launch"
  "LAUNCH_ARGS=--num_machines $nodes --num_processes $((nodes * GPUS_PER_NODE)) --machine_rank MACHINE_RANK --main_process_ip $head --main_process_port $PORT"
)
if [ -n "$DRY_RUN" ]; then
  printf '   make'; printf " '%s'" "${goals[@]}" "${arguments[@]}"; echo
else
  exec make "${goals[@]}" "${arguments[@]}"
fi

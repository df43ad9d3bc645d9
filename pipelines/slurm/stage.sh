#!/bin/bash
# One job: stage.sh STAGE ITERATION. make runs on the job's first node and starts the stage on all of them by srun.
#
#   setup    the run's configuration, starting policy, data, and the evaluation of its start
#   rollout  score (score-attention, weight-tokens)  train  finish (evaluate, report, prune)
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck source=pipelines/slurm/cluster.env
. "$CLUSTER"
unset CONFIG  # an empty one of the shell would count as named
export SRUN_CPUS_PER_TASK=$CPUS_PER_NODE  # srun does not take it from the job
stage=$1 iteration=$2 nodes=$SLURM_JOB_NUM_NODES
python=$PYTHON launch=processes engine=
arguments=("RUN=$RUN" "ITER=$iteration")
case $stage in
  setup)
    engine=$EVALUATE_ENGINE goals=("training_logs/$RUN/iter-0000/report/manifest.json") prefix=EVALUATE
    arguments=("RUN=$RUN" "LAG=$LAG" ${CONFIG_FILE:+"CONFIG=$CONFIG_FILE"} ${SET:+"SET=$SET"}) ;;
  rollout) engine=$ROLLOUT_ENGINE goals=(rollout) prefix=ROLLOUT python=$ROLLOUT_PYTHON ;;
  score) goals=(score-attention weight-tokens) prefix=SCORE ;;
  train) goals=(train-step) prefix=TRAIN launch=$TRAIN_LAUNCH ;;
  finish) engine=$EVALUATE_ENGINE goals=(iterate) prefix=EVALUATE arguments=("RUN=$RUN" "ITERS=$iteration" "EVAL_EVERY=$EVAL_EVERY") ;;
  *) echo "$0: found $stage; needed setup, rollout, score, train or finish." >&2; exit 2 ;;
esac
case $engine in vllm|server) launch=1 python=$ROLLOUT_PYTHON ;; esac
hosts=HEAD_NODE
[ -n "$DRY_RUN" ] || hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${hosts%%$'\n'*}
arguments+=(
  "${prefix}_PYTHON=srun --nodes=$nodes --ntasks-per-node=1 --kill-on-bad-exit=1${SRUN_OPTIONS:+ $SRUN_OPTIONS} pipelines/slurm/node.sh $python"
  "${prefix}_LAUNCH=$launch"
  "LAUNCH_ARGS=--num_machines $nodes --num_processes $((nodes * GPUS_PER_NODE)) --machine_rank MACHINE_RANK --main_process_ip $head --main_process_port $PORT"
)
if [ -n "$DRY_RUN" ]; then
  printf '   make'; printf " '%s'" "${goals[@]}" "${arguments[@]}"; echo
else
  exec make "${goals[@]}" "${arguments[@]}"
fi

#!/bin/bash
# Submits a run to Slurm: a job per stage and iteration, each waiting for those it reads from. Every job calls make, so
# what exists is not redone and the same call again carries on after a failure.
#
#   pipelines/slurm/submit.sh RUN=ddm CONFIG=pipelines/reference-7b.yaml ITERS=20 LAG=1 CLUSTER=mine.env
#
# DRY_RUN=1 in front prints the jobs, and what each runs, without Slurm.
set -euo pipefail
cd "$(dirname "$0")/../.."

RUN=first CONFIG='' SET='' ITERS='' EVAL_EVERY=1 LAG='' CLUSTER=pipelines/slurm/cluster.env
for setting in "$@"; do
  case $setting in
    RUN=*|CONFIG=*|SET=*|ITERS=*|EVAL_EVERY=*|LAG=*|CLUSTER=*) declare "$setting" ;;
    *) echo "$0: found $setting; needed RUN, CONFIG, SET, ITERS, EVAL_EVERY, LAG or CLUSTER=value." >&2; exit 2 ;;
  esac
done
[ -r "$CLUSTER" ] || { echo "$CLUSTER: found nothing; needed a copy of pipelines/slurm/cluster.env. Make one." >&2; exit 3; }
# shellcheck source=pipelines/slurm/cluster.env
. "$CLUSTER"
# The rest is as the run is configured; make asks for it.
run=("RUN=$RUN" ${CONFIG:+"CONFIG=$CONFIG"} ${SET:+"SET=$SET"} ${ITERS:+"ITERS=$ITERS"} ${LAG:+"LAG=$LAG"})
goal=training_logs/$RUN/configured
asked=$(env -u CONFIG -u SET -u ITERS -u LAG make -n --silent "${run[@]}" "$goal" \
  --eval="$goal: ; \$(info \$(ITERS) \$(LAG) \$(engine) \$(evaluate_engine) \$(PY) \$(CONFIG))")
read -r ITERS LAG ROLLOUT_ENGINE EVALUATE_ENGINE python config <<< "$asked"
# As make does, the shell takes SET apart.
jobs=$(eval "$python -m dapo_stages config --config '$config' $SET --set lag=$LAG --jobs $ITERS $EVAL_EVERY")
export CLUSTER RUN SET LAG ROLLOUT_ENGINE EVALUATE_ENGINE EVAL_EVERY CONFIG_FILE="$CONFIG" DRY_RUN="${DRY_RUN:-}"
# vLLM and a server are asked by one process.
nodes_for() { case $1 in vllm|server) echo 1 ;; *) echo "$ROLLOUT_NODES" ;; esac; }
ROLLOUTS=$(nodes_for "$ROLLOUT_ENGINE") EVALUATIONS=$(nodes_for "$EVALUATE_ENGINE")
logs=training_logs/$RUN/slurm
submitted=0

# submit STAGE ITERATION NODES [JOB…]: a job that starts when these have succeeded; its number is left in $job.
submit() {
  local stage=$1 iteration=$2 nodes=$3 after options
  shift 3
  after=$(IFS=:; echo "$*")
  options=(--parsable --job-name="$RUN-$stage-$iteration" --output="$logs/%x-%j.log" --nodes="$nodes" --time="$TIME"
    --ntasks-per-node=1 --cpus-per-task="$CPUS_PER_NODE" --gpus-per-node="$GPUS_PER_NODE" --exclusive)
  [ -z "$ACCOUNT" ] || options+=(--account="$ACCOUNT")
  [ -z "$PARTITION" ] || options+=(--partition="$PARTITION")
  [ -z "$after" ] || options+=(--dependency="afterok:$after" --kill-on-invalid-dep=yes)
  # shellcheck disable=SC2206  # several options in one variable
  options+=($SBATCH_OPTIONS)
  submitted=$((submitted + 1))
  if [ -n "$DRY_RUN" ]; then
    job=$submitted
    echo "$job: sbatch ${options[*]} pipelines/slurm/stage.sh $stage $iteration"
    SLURM_JOB_NUM_NODES=$nodes pipelines/slurm/stage.sh "$stage" "$iteration"
  else
    mkdir -p "$logs"
    job=$(sbatch "${options[@]}" pipelines/slurm/stage.sh "$stage" "$iteration")
    job=${job%%;*}  # the cluster's name may follow
    echo "$job: $stage of iteration $iteration${after:+, after ${after//:/, }}"
  fi
}

# Each waits for the jobs whose outputs it reads.
declare -A number
while read -r stage iteration after; do
  case $stage in
    rollout) nodes=$ROLLOUTS ;; score) nodes=$ROLLOUT_NODES ;; train) nodes=$TRAIN_NODES ;; finish) nodes=$EVALUATIONS ;;
    *) nodes=1 ;;
  esac
  waits=()
  for name in $after; do waits+=("${number[$name]}"); done
  submit "$stage" "$iteration" "$nodes" ${waits[@]+"${waits[@]}"} < /dev/null
  number[$stage/$iteration]=$job
done <<< "$jobs"

#!/bin/bash
# srun starts this on each node of a job: it runs the given command with MACHINE_RANK replaced by the node's number.
exec "${@//MACHINE_RANK/$SLURM_NODEID}"

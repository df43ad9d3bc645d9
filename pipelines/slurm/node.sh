#!/bin/bash
# What srun starts on each node of a job: the command it is given, with the node's number for MACHINE_RANK.
exec "${@//MACHINE_RANK/$SLURM_NODEID}"

#!/bin/bash
# ./openmpi.sh MODEL_DIR OUT.npy
#
# Open MPI 4: mpirun sets OMPI_MCA_orte_hnp_uri, by which JAX finds the first process. mpirun has
# to run on the host of process 0, whose address it is.
# Open MPI 5 sets no such variable (jax issue 14576): process 0's address is given below. With
# mpi4py installed, initialize(method="mpi4py") needs neither.
set -euo pipefail

PROCESSES=${PROCESSES:-8}
HOSTS=${HOSTS:-"$(hostname):4,other-host:4"}  # one process a GPU: four on each of two hosts

options=()
if mpirun --version | grep -q ' 5\.'; then
  options=(-x "JAX_COORDINATOR_ADDRESS=$(hostname):12345")
fi

# An exit code that is not 0 ends all: mpirun's default.
exec mpirun -n "$PROCESSES" --host "$HOSTS" "${options[@]}" python program.py "$@"

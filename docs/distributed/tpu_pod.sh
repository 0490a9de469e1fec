#!/bin/bash
# TPU_NAME=... ZONE=... ./tpu_pod.sh MODEL_DIR OUT.npy
#
# A slice of several hosts: the same program is started on every one. JAX reads the number of the
# host and the address of the first from the machine's metadata, so initialize() needs nothing.
# MODEL_DIR and program.py have to be there on every host: a mounted bucket, or a copy.
set -euo pipefail
: "${TPU_NAME:?the name of the slice}" "${ZONE:?its zone}"

on_all() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

gcloud compute tpus tpu-vm scp program.py "$TPU_NAME": --zone="$ZONE" --worker=all
on_all "pip install --quiet 'jax[tpu]' jaxinfer"
on_all "python program.py $(printf '%q ' "$@")"

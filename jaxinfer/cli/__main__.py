"""``python -m jaxinfer.cli``."""

from jaxinfer.cli import main

main(prog_name="jaxinfer")

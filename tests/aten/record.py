"""Record torch's outputs for every rule case: ``python -m tests.aten.record``."""

from tests.aten.harness import GOLDEN, write_golden

if __name__ == "__main__":
    print(f"{write_golden()} arrays -> {GOLDEN / 'all.npz'}")

"""`python -m ke_metric.cli` is `ke-metric`; for `torchrun -m`."""

from ke_metric.cli import run_program

if __name__ == "__main__":
    run_program()

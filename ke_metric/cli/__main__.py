"""`python -m ke_metric.cli` is `ke-metric`; for `torchrun -m`."""

from ke_metric.cli import main

if __name__ == "__main__":
    main()

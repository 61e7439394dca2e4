"""How fast this machine multiplies matrices: what shares of the rate are shares of.

`python -m benchmarks.products`. The other commands measure the same in their own run, and print
what share of the best of these rates each side reached.
"""

from benchmarks.arithmetic import product_rates
from benchmarks.entry import run
from benchmarks.harness import Figure, parse_arguments, report


def main() -> None:
    arguments = parse_arguments("the machine's matrix-multiply rate", repeats=9, has_trial=False)
    rates = product_rates(arguments.device, arguments.repeats)
    figures = [Figure(f"product {name}", rate / 1e9, "GFLOP/s") for name, rate in rates.items()]
    report("Matrix products", arguments, figures=figures)


if __name__ == "__main__":
    run(main)

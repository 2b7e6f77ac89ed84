"""Measure several machines: `python -m benchmarks.cluster [--quick] [--only NAME …]`.

See README.md, "Several machines". Writes benchmarks/results/<commit>-two_services.json.
"""

import sys

from benchmarks import run
from benchmarks.figures import Figures, state_calls, two_services

FIGURES: Figures = {
    "hits": two_services.hits,
    "cold": two_services.cold,
    "identical": two_services.identical,
    "takeover": two_services.take_over,
    "trips": state_calls.round_trips,
    "rows": state_calls.look_up,
}

if __name__ == "__main__":
    sys.exit(run.main(FIGURES, "-cluster"))

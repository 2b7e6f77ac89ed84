"""Measure several machines: `python -m benchmarks.cluster [--quick] [--only NAME …]`.

See README.md, "Several machines". Writes benchmarks/results/<commit>-cluster.json.
"""

from __future__ import annotations

import sys

from benchmarks import run
from benchmarks.figures import Figures, cluster, database

FIGURES: Figures = {
    "hits": cluster.hits,
    "cold": cluster.cold,
    "identical": cluster.identical,
    "takeover": cluster.take_over,
    "trips": database.round_trips,
    "rows": database.look_up,
}

if __name__ == "__main__":
    sys.exit(run.main(FIGURES, "-cluster"))

"""Packages that only some settings need, and how to install them."""

from __future__ import annotations

import importlib.util

# By the end of the name of the file that installs them: requirements-cluster.txt.
_PACKAGES = {
    "cluster": ("psycopg", "psycopg_pool", "obstore"),
    "formats": ("PIL",),
    "metrics": ("prometheus_client",),
    "socks": ("socks",),
}


def check_extra(name: str) -> None:
    """Raise ValueError, with the command to run, if a package of an extra is not installed."""
    for package in _PACKAGES[name]:
        if importlib.util.find_spec(package) is None:
            command = f".venv/bin/pip install -c constraints.txt -r requirements-{name}.txt"
            docker = f"build the Docker image with EXTRAS={name}"
            raise ValueError(f"needs packages that are not installed; run {command}, or {docker}")

"""What the Docker image holds, by the COPY lines of the Dockerfile."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")


def copy_image(folder: Path) -> None:
    """Copy what the image's working directory holds into a new folder."""
    folder.mkdir()
    for arguments in re.findall(r"(?m)^COPY (.+)$", DOCKERFILE):
        *patterns, destination = arguments.split()
        sources = [path for pattern in patterns for path in ROOT.glob(pattern)]
        assert sources, f"COPY {arguments} copies nothing"
        for source in sources:
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, folder / destination, ignore=ignored)
            else:
                shutil.copy(source, folder / destination)

"""Versions with the hashes of their files, from a report of ``pip install --dry-run``.

    make lock

The hashes are those of the files that pip chooses on the machine at hand. No address is written.
"""

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """\
# Written by `make lock`: constraints.txt for Linux on x86-64 and Python 3.11, without torch.
#   pip install --require-hashes --no-deps -r .ci/constraints.lock
"""


def locked(report: dict[str, Any]) -> str:
    """One line a package: ``name==version --hash=sha256:...``, by name.

    Raises:
        ValueError: a package is not a file with a hash.
    """
    lines = []
    for item in report["install"]:
        name, version = item["metadata"]["name"].lower(), item["metadata"]["version"]
        digest = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
        if digest is None:
            raise ValueError(f"{name}=={version} must be a file with a sha256, got none")
        lines.append(f"{name}=={version} --hash=sha256:{digest}\n")
    return HEAD + "".join(sorted(lines))


if __name__ == "__main__":
    print(locked(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), end="")

"""Lines of JSONL files."""

import json
from typing import Any

from dspy_diffusion_infill.errors import DataError


def parse_line(line: bytes) -> Any:
    """One line of JSONL.

    Raises:
        DataError: it is no UTF-8, no JSON, or holds text that cannot be encoded.
    """
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"invalid UTF-8 at byte {error.start} of the line (0x{line[error.start]:02x}); "
            "save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"no JSON: {error}") from error
    if b"\\ud" in line.lower():  # half of an escaped pair is JSON, and no Unicode text
        try:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise DataError(
                f"the text holds \\u{ord(half):04x}, half of a surrogate pair: it was cut inside a "
                "character, so take that half out"
            ) from error
    return record

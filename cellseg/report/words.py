"""What happened, in sentences: from which images to which, what rose, what fell, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from cellseg.config import Selection
from cellseg.core import CellsegError
from cellseg.datasets.index import select
from cellseg.metrics.scores import GOOD_STATUS
from cellseg.report.changes import Change
from cellseg.report.facts import shown
from cellseg.report.runs import Method, Run, lacks_target
from cellseg.report.start import name_of
from cellseg.report.views import CellCount

FEW_IMAGES = 10
"""Below this many images a page says that they are few."""


def number(value: float | None, digits: int = 3, *, signed: bool = False) -> str:
    """Write a score as tables of this field do: no zero before the point, a true minus sign, a dash for none.

    Examples
    --------
    >>> number(0.3261), number(-0.5, signed=True), number(1.0), number(float("nan"))
    ('.326', '−.500', '1.000', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    rounded = f"{abs(value):.{digits}f}"
    sign = "" if float(rounded) == 0 else "−" if value < 0 else "+" if signed else ""
    return sign + (rounded[1:] if rounded.startswith("0.") else rounded)


def counted(count: int, noun: str) -> str:
    """Write a number with its noun, in the plural unless it is one.

    Examples
    --------
    >>> counted(1, "seed"), counted(1200, "image")
    ('1 seed', '1,200 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def joined(parts: Sequence[str]) -> str:
    """Join words as a sentence does: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""


def say_change(changes: Sequence[Change], start: str) -> tuple[str, str]:
    """Say what became of one evaluation set, and how sure it is.

    Parameters
    ----------
    changes : sequence of Change
        Of the same set, one for each method after the first; at least one.
    start : str
        Name of the first method.

    Returns
    -------
    (str, str)
        A sentence, and the intervals. A change the images leave open neither rose nor fell.
    """
    one = changes[0]
    where = f"On {counted(one.n_images, f'{one.evaluation} image')} mean F1@0.5"
    if len(changes) == 1:
        verb = "went" if not one.is_settled else "rose" if one.difference.mean > 0 else "fell"
        return f"{where} {verb} from {number(one.before)} to {number(one.after)}.", _say_interval(one, "Change")
    values = [f"{number(change.after)} for {change.method}" for change in changes]
    sentence = f"{where} is {joined([f'{number(one.before)} for {start}', *values])}."
    return sentence, "; ".join(_say_interval(change, change.method) for change in changes)


def _say_interval(change: Change, name: str) -> str:
    if math.isnan(change.difference.low):
        return f"{name} {number(change.difference.mean, signed=True)}; one image tells nothing about others"
    low, high = (number(value, signed=True) for value in (change.difference.low, change.difference.high))
    said = f"{name} {number(change.difference.mean, signed=True)}, 95 % interval {low} to {high}"
    return said if change.is_settled else f"{said}: these images leave open whether anything changed"


def say_cells(methods: Sequence[Method], cells: Sequence[CellCount]) -> list[tuple[str, str]]:
    """Say how many cells were found in images without labels; nothing where there are no such images."""
    pairs = [(each.counts[0], each.counts[-1]) for each in cells]
    known = [(first, last) for first, last in pairs if first is not None and last is not None]
    if not known:
        return []
    before, after = (sum(counts) for counts in zip(*known, strict=True))
    where = f"In {counted(len(known), 'image')} without labels"
    if len(methods) == 1:
        return [(f"{where} {methods[0].name} finds {counted(after, 'cell')}.", "")]
    agreements = [each.agreement for each in cells if each.agreement is not None]
    mean = number(sum(agreements) / len(agreements))
    return [
        (
            f"{where} {methods[0].name} found {counted(before, 'cell')} and {methods[-1].name} finds {after:,}.",
            f"Between the two F1@0.5 is {mean} on average: how much changed, not how much of it is right",
        )
    ]


def say_decisions(method: Method) -> list[str]:
    """Say which weights each seed of an adaptation handed out and why; nothing for runs from scratch."""
    said = []
    for run in method.runs:
        decision = _decision(run)
        if decision:
            seed = f"Seed {run.seed}: " if len(method.runs) > 1 else ""
            said.append(f"{seed}{decision}" if seed else f"{decision[:1].upper()}{decision[1:]}")
    return said


def _decision(run: Run) -> str:
    if run.start is None or not run.summary:
        return ""
    text = run.summary.get("decision")
    if not text:
        step, by = run.summary.get("chosen_step"), run.summary.get("chosen_by")
        text = f"the weights of step {step} are handed out, chosen by: {by}" if by is not None else ""
    mixed = run.config.adapt.wise if run.config is not None and "wise" in run.summary else None
    return f"{text}; then mixed, {mixed:g} of them and {1 - mixed:g} of the start" if mixed is not None else str(text)


def say_origin(methods: Sequence[Method]) -> str:
    """Say what was adapted from what to what, as far as the configurations tell."""
    first = methods[0]
    sentences: list[str] = []
    alike: dict[tuple[str, str], list[str]] = {}
    for method in methods:
        images = describe_training(method.first)
        start = method.first.config.train.init if method.first.config else None
        if start is not None and images:
            origin = first.name if _is_run(start, first) else name_of(start)
            alike.setdefault((origin, images), []).append(method.name)
        elif images and method is first:
            sentences.append(f"{first.name} was trained on {images}.")
    for (origin, images), names in alike.items():
        were = "was" if len(names) == 1 else "were"
        sentences.append(f"{joined(names)} started from {origin} and {were} adapted to {images}.")
    return " ".join(sentences)


def _is_run(start: str, method: Method) -> bool:
    """Whether weights to start from are those of a method; a run folder may have moved with its parents."""
    path = Path(start)
    folder = path.parent if path.suffix else path
    return any(
        folder.resolve() == run.folder.resolve() or folder.parts[-2:] == run.folder.resolve().parts[-2:]
        for run in method.runs
    )


def describe_training(run: Run) -> str:
    """Describe the images a run learned from; empty where its configuration does not tell."""
    if run.config is None:
        return ""
    data = run.config.data
    # Plain training reads no unlabelled images, even where its configuration names some.
    adapted = any({"consistency", "pseudo_cells"} & line.keys() for line in run.log)
    parts = [("labelled", *_describe(data.train, "labelled"))] if data.train else []
    parts += [("unlabelled", *_describe(data.unlabelled, "unlabelled"))] if data.unlabelled and adapted else []
    if len(parts) == 2 and parts[0][2] == parts[1][2]:
        kinds = joined([f"{count} {kind}".strip() for kind, count, _ in parts])
        return f"{kinds} images ({parts[0][2]})"
    return joined(
        [f"{count} {kind} {'image' if count == '1' else 'images'} ({names})".strip() for kind, count, names in parts]
    )


def _describe(selections: Sequence[Selection], kind: str) -> tuple[str, str]:
    """Return how many images there are, empty where that is not known, and of which data sets and groups."""
    try:
        records = [record for selection in selections for record in select(selection)]
    except CellsegError:  # the index is gone or has changed: what was asked for is still known
        names = [": ".join(filter(None, [Path(s.index).parent.name, joined(s.groups)])) for s in selections]
        return "", "; ".join(dict.fromkeys(names))
    if kind == "labelled":
        records = [record for record in records if record.label_kind == "instances"]
    groups: dict[str, dict[str, None]] = {}
    for record in records:
        groups.setdefault(record.dataset, {}).setdefault(record.group)
    names = [
        ": ".join(filter(None, [dataset, _short([name for name in of if name])])) for dataset, of in groups.items()
    ]
    return f"{len(records):,}", "; ".join(filter(None, names))


def _short(names: list[str], most: int = 4) -> str:
    return joined(names if len(names) <= most else [*names[:most], f"{len(names) - most} more"])


def say_caveats(methods: Sequence[Method], evaluations: Sequence[str], changes: Sequence[Change]) -> list[str]:
    """List what a reader should know before believing the figures."""
    seeds = min(len(method.runs) for method in methods)
    if not evaluations:
        return [
            "Nothing was scored: without true labels nobody knows whether the cells after are better than those "
            "before. 'cellseg suggest' says which images to annotate first."
        ]
    tables = [table for method in methods for name in evaluations for table in method.scores(name)]
    caveats = []
    if any(run.config is not None and lacks_target(run.config) for run in methods[-1].runs):
        caveats.append(
            "Of the images that it was adapted to none was scored: without true labels nobody knows what was gained "
            "there. 'cellseg suggest' says which images to annotate first."
        )
    if any(table["dataset"].str.startswith("synthetic").any() for table in tables):
        caveats.append("Synthetic images: no statement about real microscopy.")
    if changes and seeds == 1:
        which = "One seed each" if all(len(method.runs) == 1 for method in methods) else "One seed of some runs"
        caveats.append(
            f"{which}: the intervals say how much other images of the same kind might move the mean, not how much "
            "another training might."
        )
    elif changes:
        caveats.append(
            f"Means are over {counted(seeds, 'seed')} and all images; intervals are from a paired bootstrap over both, "
            "and with few seeds tend to be too short."
        )
    if len(methods) == 1 and methods[0].first.start is not None:
        run = methods[0].first
        caveats.append(
            f"{run.name} started from {name_of(run.start or '')}, whose scores on these images are not there, so what "
            f"it gained and lost cannot be told: 'cellseg evaluate {shown(run.folder)}' makes them."
        )
    sizes = {change.evaluation: change.n_images for change in changes}
    few = [counted(size, f"{name} image") for name, size in sizes.items() if size < FEW_IMAGES]
    if few:
        caveats.append(f"Only {joined(few)}: the means are rough.")
    known = {(change.method, change.evaluation) for change in changes}
    caveats += [
        f"{method.name} was not compared on {name}: not scored on the same images, truth and rule as {methods[0].name}."
        for method in methods[1:]
        for name in evaluations
        if (method.name, name) not in known
    ]
    return caveats + _say_status(methods, evaluations)


def _say_status(methods: Sequence[Method], evaluations: Sequence[str]) -> list[str]:
    sentences = []
    for method in methods:
        for name in evaluations:
            for table in method.scores(name)[:1]:
                status = table.drop_duplicates("image")["status"]
                if bad := int((~status.isin(GOOD_STATUS)).sum()):
                    sentences.append(
                        f"{method.name}, {name}: {counted(bad, 'prediction')} missing or unusable, scored 0."
                    )
                if method is methods[0] and (empty := int((status == "empty").sum())):
                    sentences.append(f"{name}: {counted(empty, 'image')} without any cell, rightly found empty.")
    return sentences

"""The ``mapseg`` command. Every sub-command builds a job and runs it as the worker does.

Only what ``--help`` needs is imported here; everything else when a command runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_arguments import (
    Contrast,
    Device,
    LabelTable,
    Modality,
    Model,
    OnceForData,
    OptionsFile,
    Output,
    OutputFile,
    Overwrite,
    Precision,
    Scans,
    Seed,
    Spacing,
    Threads,
    Uncertainty,
)
from .federated.cli import app as federate

app = typer.Typer(
    name="mapseg",
    help="Segment 3D medical scans, and adapt to new scanners and contrasts without labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(federate, name="federate")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    if version:
        from . import __version__

        typer.echo(f"mapseg {__version__}")
        raise typer.Exit


@app.command()
def segment(
    model: Model,
    scans: Scans,
    output: OutputFile,
    uncertainty: Uncertainty = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Write the probabilities of all structures, 0 to 255, too."),
    ] = False,
    device: Device = None,
    precision: Precision = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of a window that its neighbour repeats.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Windows at once.")] = None,
    threads: Threads = None,
    options: OptionsFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Segment scans with a model.

    The same command, given again, goes on with the scans that have no result yet.
    """
    flags = {"device": device, "precision": precision, "overlap": overlap, "batch": batch, "threads": threads}
    job = {
        "model": model,
        "scans": scans,
        "output": output,
        "uncertainty": uncertainty,
        "probabilities": probabilities,
        "overwrite": overwrite,
    }
    _run("segment", job, flags, options)


@app.command(cls=OnceForData)
def adapt(
    model: Model,
    scans: Scans,
    output: OutputFile,
    source: Annotated[
        Path | None, typer.Option(help="Labelled scans to train on as well: folder, data set or manifest.")
    ] = None,
    source_labels: Annotated[
        Path | None, typer.Option("--source-labels", help="Folder of their label maps, named alike.")
    ] = None,
    source_from_labels: Annotated[
        Path | None,
        typer.Option("--source-from-labels", help="Folder of label maps to synthesise source images from."),
    ] = None,
    source_contrast: Annotated[
        str, typer.Option("--source-contrast", help="t1, t2, random or mixed.")
    ] = "t1",
    preset: Annotated[str | None, typer.Option(help="With a source: paper (default), v2 or plus.")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="With a source: first steps, on the source alone (1000).")
    ] = None,
    uncertainty: Uncertainty = False,
    save_model: Annotated[bool, typer.Option("--save-model", help="Keep the adapted model.")] = False,
    no_gate: Annotated[bool, typer.Option("--no-gate", help="Keep the adapted result in any case.")] = False,
    steps: Annotated[
        int | None,
        typer.Option(help="Number of steps for all scans together, at most (150; with a source 5000)."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes to adapt, per scan, at most (2.5; with a source 120).")
    ] = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    options: OptionsFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Adapt a model to unlabelled scans of one domain, and segment them; with a source, train on that as well.

    Enter stops early and keeps the best so far; Ctrl-C cancels, and the same command continues later.
    """
    flags = {
        "steps": steps,
        "minutes": minutes,
        "seed": seed,
        "device": device,
        "precision": precision,
        "threads": threads,
        "gate": False if no_gate else None,
        "preset": preset,
        "warmup": warmup,
    }
    job = {
        "model": model,
        "scans": scans,
        "output": output,
        "uncertainty": uncertainty,
        "overwrite": overwrite,
        "save_model": save_model,
        "source": source,
        "source_labels": source_labels,
        "source_from_labels": source_from_labels,
        "source_contrast": source_contrast,
    }
    _run("adapt", job, flags, options)


@app.command(cls=OnceForData)
def train(
    output: Output,
    name: Annotated[str, typer.Option(help="Name of the model.")],
    images: Annotated[Path | None, typer.Option(help="Labelled scans: folder, data set or manifest.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of their label maps, named alike.")] = None,
    from_labels: Annotated[
        Path | None, typer.Option("--from-labels", help="Folder of label maps to synthesise images from.")
    ] = None,
    contrast: Contrast = "t1",
    preset: Annotated[str | None, typer.Option(help="Architecture: tiny, small (default) or paper.")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Model, or pretrained encoder, to start from; size, spacing and modality are its.",
            metavar="MODEL",
        ),
    ] = None,
    label_table: LabelTable = None,
    spacing: Spacing = None,
    modality: Modality = None,
    holdout: Annotated[int, typer.Option(help="Cases kept back to choose the best weights.")] = 0,
    description: Annotated[str, typer.Option(help="Goes into the model card.")] = "",
    license: Annotated[str, typer.Option(help="Of the weights; goes into the model card.")] = "",
    steps: Annotated[int | None, typer.Option(help="Number of steps, at most (5000).")] = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    options: OptionsFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a source model on scans with labels, or on images synthesised from label maps.

    A training that was interrupted continues when the same command is given again.
    """
    flags = {"steps": steps, "seed": seed, "device": device, "precision": precision, "threads": threads}
    job = {
        "output": output,
        "name": name,
        "images": images,
        "labels": labels,
        "from_labels": from_labels,
        "contrast": contrast,
        "label_table": label_table,
        "preset": preset,
        "init": init,
        "preprocessing": _preprocessing(spacing, modality),
        "holdout": holdout,
        "description": description,
        "license": license,
        "overwrite": overwrite,
    }
    _run("train", job, flags, options)


@app.command(cls=OnceForData)
def pretrain(
    output: Output,
    name: Annotated[str, typer.Option(help="Name of the encoder.")],
    domains: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of unlabelled scans, data sets or manifests: one a domain, unless a manifest states some.",
            metavar="FOLDER",
        ),
    ] = None,
    from_labels: Annotated[
        Path | None, typer.Option("--from-labels", help="Folder of label maps to synthesise images from.")
    ] = None,
    contrast: Contrast = "t1",
    preset: Annotated[str, typer.Option(help="Architecture: tiny, small or paper.")] = "small",
    spacing: Spacing = None,
    modality: Modality = None,
    description: Annotated[str, typer.Option(help="Goes into the card.")] = "",
    license: Annotated[str, typer.Option(help="Of the weights; goes into the card.")] = "",
    steps: Annotated[int | None, typer.Option(help="Number of steps, at most (150000).")] = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    options: OptionsFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain an encoder on unlabelled scans, or on images synthesised from label maps, for `mapseg train --init`.

    All domains are drawn equally often. The same command, given again, continues an interrupted pretraining.
    """
    flags = {"steps": steps, "seed": seed, "device": device, "precision": precision, "threads": threads}
    job = {
        "output": output,
        "name": name,
        "domains": domains or [],
        "from_labels": from_labels,
        "contrast": contrast,
        "preset": preset,
        "preprocessing": _preprocessing(spacing, modality) or {},
        "description": description,
        "license": license,
        "overwrite": overwrite,
    }
    _run("pretrain", job, flags, options)


@app.command()
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="Label map, or a folder of them.", metavar="RESULTS")],
    reference: Annotated[
        Path,
        typer.Argument(
            help="Label map, folder of them, named alike, data set, or manifest.", metavar="REFERENCES"
        ),
    ],
    output: Output,
    model: Annotated[
        str | None,
        typer.Option(help="Model whose structures are scored; default: all that any reference holds."),
    ] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="JSON file of reference value -> label value, if they differ.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score label maps against references: Dice, 95 % Hausdorff distance, volume error."""
    job = {
        "prediction": prediction,
        "reference": reference,
        "output": output,
        "model": model,
        "mapping": mapping,
        "overwrite": overwrite,
    }
    _run("evaluate", job)


@app.command()
def review(
    results: Annotated[
        Path,
        typer.Argument(help="Folder that segment or adapt wrote, or a report in it.", metavar="RESULTS"),
    ],
    overwrite: Overwrite = False,
) -> None:
    """Draw label maps over their scans, on one page, RESULTS/review.html: those to look at first at the top."""
    _run("review", {"results": results, "overwrite": overwrite})


@app.command(cls=OnceForData)
def manifest(
    places: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of scans, data sets, or manifests.", metavar="FOLDER", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")],
    labels: Annotated[
        Path | None, typer.Option(help="Folder of label maps, named alike, of one folder of scans.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """List the cases of data sets, in whatever layouts, in one JSON file, which is a data set itself."""
    _run("manifest", {"places": places, "labels": labels, "output": output, "overwrite": overwrite})


@app.command()
def models(
    name: Annotated[
        str | None, typer.Argument(help="Show this model's card.", metavar="MODEL", show_default=False)
    ] = None,
) -> None:
    """List the models at hand, or show one's card."""
    from . import console

    raise typer.Exit(console.show_models(name))


@app.command("import")
def import_(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' .pth file.", metavar="CHECKPOINT")],
    name: Annotated[str, typer.Option(help="Name of the model.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: your models.")
    ] = None,
    label_table: LabelTable = None,
    spacing: Spacing = None,
    modality: Modality = None,
    patch: Annotated[int, typer.Option(help="Edge of its patches, voxels.")] = 96,
    license: Annotated[str, typer.Option(help="Of the weights.")] = "",
    overwrite: Overwrite = False,
) -> None:
    """Turn a checkpoint of the paper's authors into a model, or a pretrained one into an encoder."""
    job = {
        "checkpoint": checkpoint,
        "name": name,
        "output": output,
        "label_table": label_table,
        "preprocessing": _preprocessing(spacing, modality) or {},
        "patch": patch,
        "license": license,
        "overwrite": overwrite,
    }
    _run("import", job)


@app.command()
def synthesise(
    label_maps: Annotated[
        Path, typer.Argument(help="Label map with FreeSurfer codes, or a folder of them.", metavar="MAPS")
    ],
    output: Output,
    contrast: Contrast = "t1",
    count: Annotated[int, typer.Option(help="Images of each label map.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    spacing: Annotated[float, typer.Option(help="Voxel size, mm.")] = 1.0,
    overwrite: Overwrite = False,
) -> None:
    """Draw images from label maps, with matching labels: material for training and tests."""
    job = {
        "label_maps": label_maps,
        "output": output,
        "contrast": contrast,
        "count": count,
        "seed": seed,
        "spacing": spacing,
        "overwrite": overwrite,
    }
    _run("synthesise", job)


@app.command()
def demo(
    output: Output = Path("demo-out"),
    minutes: Annotated[float, typer.Option(help="Time for adaptation, at most.")] = 3.0,
    overwrite: Overwrite = False,
) -> None:
    """Segment the MNI152 head that nilearn carries, and adapt to it in a foreign contrast."""
    _run("demo", {"output": output, "minutes": minutes, "overwrite": overwrite})


def main() -> None:
    """Entry point of the ``mapseg`` command."""
    if "" in sys.argv[1:]:  # which would name the current folder
        print("Error: an argument is empty. Is a variable not set?", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show ends no job
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    app()


def _preprocessing(spacing: str | None, modality: str | None) -> dict[str, Any] | None:
    edges = spacing.split("x") if spacing is not None else []
    given = {"spacing": edges * 3 if len(edges) == 1 else edges or None, "modality": modality}
    return {key: value for key, value in given.items() if value is not None} or None


def _run(
    task: str, job: dict[str, Any], flags: dict[str, Any] | None = None, options: Path | None = None
) -> None:
    from . import console, distributed

    distributed.end(console.run(task, job, flags, options))


if __name__ == "__main__":
    main()

"""What several sub-commands of ``mapseg`` take."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

Model = Annotated[str, typer.Argument(help="Name (see `mapseg models`) or file of a model.", metavar="MODEL")]
Scans = Annotated[
    list[Path],
    typer.Argument(
        help="Scans, DICOM series folders, folders of scans, data sets, or manifests.",
        metavar="SCAN",
        show_default=False,
        readable=False,  # one that cannot be read stops no other
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
OutputFile = Annotated[Path, typer.Option("--output", "-o", help="Folder, or a file name for one scan.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")]
Uncertainty = Annotated[bool, typer.Option("--uncertainty", help="Write uncertainty maps too.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[str | None, typer.Option(help="auto, bf16 or fp32.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; all cores, or OMP_NUM_THREADS, by default.")]
Seed = Annotated[int | None, typer.Option(help="Seed of all random numbers.")]
OptionsFile = Annotated[
    Path | None,
    typer.Option("--options", help="JSON file with more options, by their names in MAPSegLib/config.py."),
]
Spacing = Annotated[
    str | None,
    typer.Option(metavar="MM", help="Voxel size that it works on, mm: one number (1), or three: 1x1x3."),
]
Modality = Annotated[str | None, typer.Option(help="mr or ct; mr unless a data set says CT.")]
LabelTable = Annotated[
    str | None, typer.Option("--label-table", help="JSON file of structures, or `brain` for FreeSurfer's.")
]
Contrast = Annotated[str, typer.Option(help="t1, t2, random or mixed.")]

_DATA = ("source", "source_labels", "source_from_labels", "images", "labels", "from_labels")


class OnceForData(TyperCommand):
    """Refuses data that are given twice, of which the parser would keep the last and say nothing."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = Counter(param.name for param in self.make_parser(ctx).parse_args(args=list(args))[2])
        for name in _DATA:
            if given[name] > 1:
                advice = (
                    "Put the label maps into one folder."
                    if "labels" in name
                    else "`mapseg manifest` makes one data set of several."
                )
                ctx.fail(f"--{name.replace('_', '-')} can be given once. {advice}")
        return super().parse_args(ctx, args)

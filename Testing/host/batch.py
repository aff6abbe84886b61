"""Run the headless script on the stand-in application, and draw each result over its scan.

``python -m Testing.host.batch --input FOLDER --output FOLDER [...]`` takes the script's own options; the pictures go to
``OUTPUT/overlays``.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path

import slicer

from . import render, scene

SCRIPT = Path(__file__).parents[2] / "MAPSeg" / "Scripts" / "MAPSegBatch.py"


def run_script(arguments: list[str]) -> int:
    """The script as the application runs it; returns its exit code."""
    scene.install()
    scene.offer_module_base_classes()
    before = sys.argv
    sys.argv = [str(SCRIPT), "--", *arguments]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    raise RuntimeError("the script did not end with sys.exit: the application would stay open")


def draw_results(output: Path) -> list[Path]:
    """A picture of every finished case whose scan is a file."""
    made = []
    for found in json.loads((output / "report.json").read_text(encoding="utf-8"))["scans"]:
        source = Path(found["file"])
        if found["state"] != "done" or not source.is_file():
            continue
        scene.install()
        volume = read(slicer.vtkMRMLVolumeArchetypeStorageNode(), "vtkMRMLScalarVolumeNode", source)
        file = output / found["files"]["segmentation"]
        segmentation = read(slicer.vtkMRMLSegmentationStorageNode(), "vtkMRMLSegmentationNode", file)
        segmentation.CreateDefaultDisplayNodes()
        folder = output / "overlays"
        folder.mkdir(exist_ok=True)
        made.append(render.write_overlay(folder / f"{found['case']}.png", volume, segmentation))
    return made


def read(storage, kind: str, path: Path):
    """A file as a node of the scene."""
    node = slicer.mrmlScene.AddNewNodeByClass(kind, path.name)
    storage.SetFileName(str(path))
    if not storage.ReadData(node):
        raise OSError(f"{path} cannot be read")
    return node


if __name__ == "__main__":
    code = run_script(sys.argv[1:])
    asked = argparse.ArgumentParser(add_help=False)
    asked.add_argument("--output", type=Path)
    folder = asked.parse_known_args()[0].output
    if folder and (folder / "report.json").is_file():
        for picture in draw_results(folder):
            print(picture)
    sys.exit(code)

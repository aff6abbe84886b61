"""A scan to try the module on, in Slicer's Sample Data module."""

from __future__ import annotations

from pathlib import Path

MRHEAD = "https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/"
MRHEAD += "cc211f0dfd9a05ca3841ce1141b292898b2dd2d3f08286affadf823a7e58df93"
CHECKSUM = "SHA256:cc211f0dfd9a05ca3841ce1141b292898b2dd2d3f08286affadf823a7e58df93"


def registerSampleData() -> None:
    """A T1-weighted head, the one that Slicer's own tutorials use: same file, same cache."""
    import SampleData

    thumbnail = Path(__file__).parents[1] / "Resources" / "Icons" / "MAPSeg.png"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MAPSeg",
        sampleName="MAPSegHead",
        thumbnailFileName=str(thumbnail),
        uris=MRHEAD,
        fileNames="MR-head.nrrd",
        checksums=CHECKSUM,
        nodeNames="MRHead",
    )

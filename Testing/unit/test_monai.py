"""What MONAI computes as well comes out as MONAI has it: windows, losses, metrics."""

import numpy as np
import pytest
import torch
from model_cases import SINGLE, tiny_model
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import compute_dice, compute_hausdorff_distance

from MAPSegLib.config import InferenceOptions
from MAPSegLib.datasets import resize_whole
from MAPSegLib.inference import class_logits, gaussian_window
from MAPSegLib.losses import segmentation_loss
from MAPSegLib.metrics import dice_scores, hd95

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of MONAI's own calls


@pytest.fixture
def masks(rng):
    """Two overlapping ellipsoids with ragged surfaces."""
    place = np.stack(np.meshgrid(*map(np.arange, (24, 20, 16)), indexing="ij"), -1)
    return [
        (((place - centre) / (8, 6, 5)) ** 2).sum(-1) + 0.2 * rng.random(place.shape[:3]) < 1
        for centre in ((11, 9, 8), (13, 10, 7))
    ]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.5, 4.0)])
def test_distance(masks, spacing):
    tensors = [torch.from_numpy(mask[None, None]) for mask in masks]
    theirs = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    assert hd95(*masks, spacing) == pytest.approx(float(theirs), rel=1e-5)


def test_dice(masks):
    theirs = compute_dice(*(torch.from_numpy(mask[None, None]) for mask in masks))
    assert dice_scores(*(mask.astype(np.int32) for mask in masks), [1])[1] == pytest.approx(float(theirs))


def test_loss_where_all_classes_are_there():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 8, 8, 8, generator=g)
    target = torch.randint(0, 4, (2, 8, 8, 8), generator=g)
    whole = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}
    theirs = DiceCELoss(**whole, smooth_nr=0, smooth_dr=1e-6)(logits, target[:, None])
    assert float(segmentation_loss(logits, target)) == pytest.approx(float(theirs) - 1, rel=1e-5)


def test_windows():
    model, g = tiny_model(SINGLE).eval(), torch.Generator().manual_seed(0)
    patch, image = model.architecture.patch, 0.1 + 0.9 * torch.rand(24, 16, 32, generator=g)
    small, shape = resize_whole(image, model.architecture.global_size), torch.tensor(image.shape)

    def segment(windows, places):
        low = torch.tensor([[axis.start for axis in place[-3:]] for place in places]) / shape
        return model(windows, small, low, low + patch / shape)

    weight = gaussian_window(patch)[None, None]
    known = {"overlap": 0.5, "mode": "gaussian", "roi_weight_map": weight, "with_coord": True}
    options = InferenceOptions(device="cpu", precision="fp32", mirror=False)
    with torch.inference_mode():
        theirs = sliding_window_inference(image[None, None], (patch,) * 3, 3, segment, **known)[0]
        pieces = class_logits(model, image, torch.device("cpu"), 2, options)
        ours = torch.cat([sides[0] for _, sides in pieces], 1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

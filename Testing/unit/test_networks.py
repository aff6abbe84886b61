"""The networks: sizes as published, shapes, and global features at continuous coordinates."""

import pytest
import torch
from model_cases import PAIRED, SIDES, SINGLE, tiny_model

from MAPSegLib.config import ARCHITECTURES, Label
from MAPSegLib.networks.curve import IntensityCurve
from MAPSegLib.networks.encoder import Encoder, ResidualBlock, group_norm
from MAPSegLib.networks.heads import ASPP, Logits, SegmentationHead
from MAPSegLib.networks.segmenter import Segmenter, lateral_mix, sample_global


def millions(module):
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 1)


def random(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_the_paper_preset_has_the_published_size():
    labels = tuple(Label(value=i, name=str(i)) for i in range(1, 8))
    with torch.device("meta"):
        model = Segmenter(ARCHITECTURES["paper"], labels)
    assert (millions(model), millions(model.encoder), millions(model.head)) == (209.9, 162.8, 47.0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_presets_turn_patches_into_class_logits_of_the_same_grid(name):
    a = ARCHITECTURES[name]
    with torch.device("meta"):
        model = Segmenter(a, SINGLE)
        features = model.features(torch.empty(2, 1, a.patch, a.patch, a.patch))
        assert features.shape == (2, a.width, *[a.patch // 4] * 3)
        patches = torch.empty(2, 1, a.patch, a.patch, a.patch)
        assert model.decode(features, features, patches).shape == (2, 4, *[a.patch] * 3)


def test_encoder_divides_each_edge_by_four():
    assert Encoder(8, 3)(random(2, 1, 8, 12, 16)).shape == (2, 8, 2, 3, 4)


def test_a_block_is_three_units_with_the_first_as_residual():
    block = ResidualBlock(3, 5)
    x = random(1, 3, 4, 4, 4) - 0.5
    one = torch.relu(block.conv1.conv(block.conv1.groupnorm(x)))
    two = torch.relu(block.conv2.conv(block.conv2.groupnorm(one)))
    three = block.conv3.conv(block.conv3.groupnorm(two))
    torch.testing.assert_close(block(x), torch.relu(three + one))


def test_norms_have_one_group_where_channels_are_few():
    assert (group_norm(64, 32).num_groups, group_norm(8, 32).num_groups, group_norm(1, 32).num_groups) == (
        32,
        1,
        1,
    )


def test_the_pyramid_looks_as_far_as_its_dilations_say_and_at_the_mean_of_all():
    pyramid, impulse = ASPP(2, 16, (1, 2, 4), dropout=0.0), torch.zeros(1, 2, 11, 11, 11)
    impulse[:, :, 5, 5, 5] = 1
    with torch.no_grad():
        for branch, reach in zip(pyramid.convs[:4], (0, 1, 2, 4), strict=True):
            seen = branch[0](impulse)[0].abs().sum(0).nonzero() - 5
            assert seen.unique().tolist() == sorted({-reach, 0, reach})
        x = random(1, 2, 4, 5, 6)
        torch.testing.assert_close(pyramid.convs[4](x), pyramid.convs[4](x.flip(2, 4)))
        maps = [branch(x).expand(-1, -1, 4, 5, 6) for branch in pyramid.convs]
        torch.testing.assert_close(pyramid(x), pyramid.project(torch.cat(maps, 1)))


def test_the_head_is_two_rectified_layers_on_the_pyramid_and_the_logits():
    head = SegmentationHead(8, 16, 8, torch.eye(3), (1, 2, 3), dropout=0.0)
    pyramid, up, norm, _, convolution, other, _, logits = list(head.children())[:8]
    x, patch = random(1, 8, 2, 2, 2), random(1, 1, 8, 8, 8)
    with torch.no_grad():
        first = torch.relu(norm(up(pyramid(x))))
        expected = logits(torch.relu(other(convolution(first))))
        torch.testing.assert_close(head(x, patch), expected, atol=1e-5, rtol=1e-4)


def test_the_head_only_drops_out_while_training():
    head = SegmentationHead(8, 16, 8, torch.eye(3), (1, 2, 3), dropout=0.5)
    x, patch = random(1, 8, 2, 2, 2), random(1, 1, 8, 8, 8)
    assert not torch.equal(head.train()(x, patch), head(x, patch))
    assert torch.equal(head.eval()(x, patch), head(x, patch))


def test_detail_lets_a_single_voxel_of_the_patch_reach_its_own_logits():
    features, patch = random(1, 8, 2, 2, 2), random(1, 1, 8, 8, 8)
    changed = patch.clone()
    changed[0, 0, 4, 4, 4] += 1
    blind, seeing = (
        SegmentationHead(8, 16, 8, torch.eye(3), (1, 2, 3), 0.0, detail).eval() for detail in (0, 8)
    )
    with torch.no_grad():
        assert torch.equal(blind(features, patch), blind(features, changed))
        difference = (seeing(features, patch) - seeing(features, changed)).abs().sum((0, 1))
    assert difference[4, 4, 4] > 0


# --- global features under a patch --------------------------------------------------------------------------------


def test_an_aligned_patch_gets_its_own_cells():
    features = random(1, 3, 8, 8, 8)
    low, high = torch.tensor([[0.25, 0.5, 0.0]]), torch.tensor([[0.75, 1.0, 0.5]])
    under = sample_global(features, low, high, (4, 4, 4))
    torch.testing.assert_close(under, features[:, :, 2:6, 4:8, 0:4], atol=1e-5, rtol=0)


def test_places_between_cells_are_interpolated_not_rounded():
    cells = (torch.arange(10) + 0.5) / 10
    axes = torch.stack(torch.meshgrid(cells, cells, cells, indexing="ij"))[None]
    low, high = torch.tensor([[0.13, 0.27, 0.41]]), torch.tensor([[0.46, 0.83, 0.62]])
    under = sample_global(axes, low, high, (4, 5, 6))
    assert under.shape == (1, 3, 4, 5, 6)
    for axis, n in enumerate((4, 5, 6)):
        expected = low[0, axis] + (torch.arange(n) + 0.5) / n * (high - low)[0, axis]
        line = under[0, axis].movedim(axis, 0).flatten(1)
        torch.testing.assert_close(line, expected[:, None].expand_as(line), atol=1e-5, rtol=0)


def test_a_small_move_changes_little():
    features, high = random(1, 2, 6, 6, 6), torch.full((1, 3), 0.5)
    for start in (0.0, 0.1, 0.24999, 0.25):
        low = torch.full((1, 3), start)
        step = sample_global(features, low + 1e-4, high + 1e-4, (3, 3, 3)) - sample_global(
            features, low, high, (3, 3, 3)
        )
        assert 0 < step.abs().max() < 5e-3


def test_beyond_the_box_the_border_goes_on():
    features = random(1, 1, 4, 4, 4)
    under = sample_global(features, torch.zeros(1, 3), torch.tensor([[2.0, 1.0, 1.0]]), (8, 4, 4))
    torch.testing.assert_close(
        under[:, :, 4:], features[:, :, -1:].expand(-1, -1, 4, -1, -1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("count", [1, 3])
def test_batches_equal_single_patches_of_one_or_of_many_scans(count):
    features = random(count, 2, 4, 4, 4)
    low = random(count, 3, seed=1) * 0.5
    for scan in (features, features[:1]):
        both = sample_global(scan, low, low + 0.4, (2, 2, 2))
        for i in range(count):
            own = scan[i : i + 1] if len(scan) > 1 else scan
            torch.testing.assert_close(
                both[i : i + 1], sample_global(own, low[i : i + 1], low[i : i + 1] + 0.4, (2, 2, 2))
            )


def test_gradients_reach_the_cells_under_the_patch_and_no_others():
    features = random(1, 2, 8, 8, 8).requires_grad_()
    low = torch.tensor([[0.0, 0.0, 0.5]])
    sample_global(features, low, low + 0.5, (4, 4, 4)).sum().backward()
    reached = features.grad.abs().sum((0, 1)) > 0
    assert reached[:4, :4, 4:].all()
    assert not reached[5:].any() and not reached[:, 5:].any() and not reached[..., :3].any()


def test_sampling_keeps_the_type_and_computes_in_fp32():
    features = random(1, 2, 4, 4, 4)
    low = torch.full((1, 3), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        under = sample_global(features.bfloat16(), low, low + 0.5, (3, 3, 3))
    assert under.dtype == torch.bfloat16
    exact = sample_global(features.bfloat16().float(), low, low + 0.5, (3, 3, 3))
    assert torch.equal(under, exact.bfloat16())


# --- the segmenter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_size", [16, 24])
def test_one_pass_through_the_encoder_gives_what_two_would(global_size):
    model = tiny_model(width=8, depth=2, global_size=global_size)
    patches, whole = random(3, 1, 16, 16, 16), random(1, 1, *[global_size] * 3, seed=1)
    with torch.no_grad():
        local, glob = model.encode(patches, whole)
        torch.testing.assert_close(local, model.features(patches), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(glob, model.features(whole), atol=1e-5, rtol=1e-5)


def test_a_batch_of_patches_gives_what_single_ones_would():
    model = tiny_model()
    patches, whole = random(3, 1, 16, 16, 16), random(1, 1, 16, 16, 16, seed=1)
    low = torch.tensor([[0.0, 0, 0], [0.3, 0.2, 0.1], [0.5, 0.5, 0.5]])
    with torch.no_grad():
        together = model(patches, whole, low, low + 0.5)
        assert together.shape == (3, 4, 16, 16, 16)
        for i in range(3):
            alone = model(patches[i : i + 1], whole, low[i : i + 1], low[i : i + 1] + 0.5)
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


def test_the_result_depends_on_the_whole_scan_and_on_the_patch_s_place():
    model = tiny_model()
    patch, whole, low = random(1, 1, 16, 16, 16), random(1, 1, 16, 16, 16, seed=1), torch.zeros(1, 3)
    with torch.no_grad():
        here = model(patch, whole, low, low + 0.5)
        assert not torch.allclose(here, model(patch, whole, low + 0.5, low + 1.0), atol=1e-4)
        assert not torch.allclose(here, model(patch, whole.flip(2), low, low + 0.5), atol=1e-4)


# --- one logit for a pair, one for the side -----------------------------------------------------------------------


def test_pairs_share_a_logit_and_differ_by_the_side():
    mix = lateral_mix(PAIRED)  # classes: background, left thalamus, brain stem, right thalamus
    outputs = torch.tensor([0.5, 2.0, -1.0, 0.75])  # background, thalamus, brain stem, side
    assert (mix @ outputs).tolist() == [0.5, 2.75, -1.0, 1.25]


def test_many_pairs_share_one_side():
    labels = [Label(value=v, name=str(v), mirror=m) for v, m in ((5, 1), (2, None), (1, 5), (8, 7), (7, 8))]
    outputs = torch.tensor([0.0, 10.0, 20.0, 30.0, 1.0])
    assert (lateral_mix(labels) @ outputs).tolist() == [0.0, 11.0, 20.0, 9.0, 31.0, 29.0]


def test_what_lies_in_the_middle_has_no_side():
    labels = [Label(value=v, name=str(v), mirror=m) for v, m in ((1, 2), (2, 1), (3, 3))]
    assert (lateral_mix(labels) @ torch.tensor([0.0, 10.0, 20.0, 1.0])).tolist() == [0.0, 11.0, 9.0, 20.0]


def test_a_mirror_that_the_model_lacks_makes_no_pair():
    mix = lateral_mix([Label(value=1, name="a", mirror=2), Label(value=3, name="b")])
    assert torch.equal(mix, torch.eye(3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_logits_are_a_convolution_and_then_the_mix(layout):
    logits, x = Logits(8, lateral_mix(PAIRED)), random(2, 8, 3, 4, 5)
    outputs = torch.nn.functional.conv3d(x, logits.weight, logits.bias)
    expected = torch.einsum("ko,boxyz->bkxyz", logits.mix, outputs)
    found = logits(x.contiguous(memory_format=layout))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found.is_contiguous()


@pytest.mark.parametrize(
    "labels", [PAIRED, SIDES], ids=["channels as classes", "fewer channels than classes"]
)
def test_the_mean_of_what_is_blended_makes_the_mean_of_logits(labels):
    model = tiny_model(labels)
    local, under, patches = random(2, 4, 4, 4, 4), random(2, 4, 4, 4, 4), random(2, 1, 16, 16, 16)
    logits, maps = model.decode(local, under, patches), model.to_blend(local, under, patches)
    assert maps.shape[1] == model.blended == 4
    mean = model.blended_logits(maps.mean(0, keepdim=True))
    torch.testing.assert_close(mean, logits.mean(0, keepdim=True), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "labels", [PAIRED, SIDES], ids=["channels as classes", "fewer channels than classes"]
)
def test_logits_that_labels_are_chosen_by_are_not_rounded_to_bf16(labels):
    """Rounded, some would be equal, and labels would be chosen by their order."""
    model = tiny_model(labels)
    local, under, patches = random(2, 4, 4, 4, 4), random(2, 4, 4, 4, 4), random(2, 1, 16, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        maps, rounded = model.to_blend(local, under, patches), model.decode(local, under, patches)
    with torch.no_grad():
        logits = model.blended_logits(maps.float())
    first, second = (each.topk(2, 1).values.diff(dim=1) == 0 for each in (logits, rounded))
    assert second.any() and not first.any()


def test_the_mix_is_no_weight_and_makes_no_entry_in_a_model_file():
    assert not any("mix" in name for name in tiny_model().state_dict())


# --- the intensity curve ------------------------------------------------------------------------------------------


def test_a_new_curve_changes_nothing():
    x = random(1, 1, 4, 4, 4)
    torch.testing.assert_close(IntensityCurve(16)(x), x)


def test_a_curve_is_linear_between_its_knots_and_keeps_the_background():
    curve = IntensityCurve(4)
    with torch.no_grad():
        curve.values.copy_(torch.tensor([1.0, 0.8, 0.2, 0.4, 0.0]))
        x = torch.tensor([0.0, 1e-6, 0.125, 0.25, 0.4, 0.5, 1.0, 1.7])
        torch.testing.assert_close(
            curve(x), torch.tensor([0, 1.0, 0.9, 0.8, 0.44, 0.2, 0.0, 0.0]), atol=1e-5, rtol=0
        )


def test_a_curve_can_be_learnt():
    curve, x = IntensityCurve(4), random(1000)
    (curve(x) * x).sum().backward()
    assert (curve.values.grad > 0).all()


def test_a_curve_goes_before_all_that_a_network_sees_and_can_be_left_out():
    model = tiny_model(curve_knots=4, detail=4)
    patch, whole, low = random(1, 1, 16, 16, 16), random(1, 1, 16, 16, 16, seed=1), torch.zeros(1, 3)
    with torch.no_grad():
        model.curve.values.copy_(torch.tensor([1.0, 0.8, 0.2, 0.4, 0.1]))
        found, seen = model(patch, whole, low, low + 0.5), (model.curve(patch), model.curve(whole))
        with model.uncurved():
            expected = model(*seen, low, low + 0.5)
        torch.testing.assert_close(found, expected)
        assert torch.equal(model(patch, whole, low, low + 0.5), found)


def test_several_threads_learn_the_same_curve():
    """A resumed training would not be the same otherwise."""
    x, threads = random(3, 1, 64, 64, 64), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        curves = [IntensityCurve(16) for _ in range(12)]
        for curve in curves:
            (curve(x) * x).sum().backward()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(curve.values.grad, curves[0].values.grad) for curve in curves)


def test_a_model_with_a_curve_starts_as_the_model_without():
    plain, curved = tiny_model(), tiny_model(curve_knots=8)
    missing, unexpected = curved.load_state_dict(plain.state_dict(), strict=False)
    assert (missing, unexpected) == (["curve.values"], [])
    x = random(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(curved.features(x), plain.features(x), atol=1e-5, rtol=1e-4)

"""Small volumes with any geometry, for the tests of reading, writing and preprocessing."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from MAPSegLib.errors import InputError
from MAPSegLib.volumes import Volume, read_image


def make_affine(
    permutation=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.0, 1.0), angles=(0, 0, 0), origin=(0, 0, 0)
):
    """Affine of a grid whose axis i runs along RAS axis permutation[i], turned by Euler angles in degrees."""
    direction = np.zeros((3, 3))
    for axis, (towards, sign) in enumerate(zip(permutation, signs, strict=True)):
        direction[towards, axis] = sign
    affine = np.eye(4)
    affine[:3, :3] = (
        Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ direction * np.array(spacing)
    )
    affine[:3, 3] = origin
    return affine


spacings = st.sampled_from([0.5, 0.75, 1.0, 1.25, 3.0, 12.0])
signs = st.sampled_from([-1, 1])
small_angles = st.floats(-20, 20).map(lambda a: round(a, 2))


@st.composite
def affines(draw):
    """Any of the 48 orientations, oblique up to 20 degrees about each axis, anisotropic."""
    return make_affine(
        permutation=draw(st.permutations((0, 1, 2))),
        signs=draw(st.tuples(signs, signs, signs)),
        spacing=draw(st.tuples(spacings, spacings, spacings)),
        angles=draw(st.tuples(small_angles, small_angles, small_angles)),
        origin=draw(st.tuples(*[st.integers(-200, 200)] * 3)),
    )


def noise_scan(shape=(9, 11, 7), affine=None, seed=0) -> Volume:
    """A volume of noise above a level, float32."""
    array = 50 + 100 * np.random.default_rng(seed).random(shape, dtype=np.float32)
    return Volume(array, np.eye(4) if affine is None else affine)


def positions(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """RAS mm (n, 3) of a mask's voxels."""
    return np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]


FORMATS = [".nii.gz", ".nii", ".nrrd", ".mha"]


def save_nifti(path, array, affine=None):
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype), path)
    return path


def noise(*shape, dtype=np.float32):
    return (50 + 100 * np.random.default_rng(1).random(shape)).astype(dtype)


def patch_header(path, offset, values):
    """Overwrite float32 fields of an uncompressed NIfTI header."""
    content = bytearray(path.read_bytes())
    data = np.asarray(values, dtype="<f4").tobytes()
    content[offset : offset + len(data)] = data
    path.write_bytes(bytes(content))
    return path


def assert_refused(path, words, read=read_image):
    with pytest.raises(InputError) as caught:
        read(path)
    message = caught.value.message
    assert words in message
    assert path.name in message
    assert "\n" not in message and message.endswith(".") and caught.value.advice
    assert caught.value.exit_code == 2

import numpy as np
import torch

from cellseg.cutmix import cut_mix


def batch(count=2, side=32):
    """Crops whose every value is the number of their crop."""
    number = torch.arange(count, dtype=torch.float32)[:, None, None, None]
    return (
        number.expand(count, 3, side, side).clone(),
        number.expand(count, 2, side, side).clone(),
        torch.ones(count, 2, side, side),
    )


def test_image_target_and_weight_are_mixed_alike_and_the_input_is_left_alone():
    parts = batch()
    parts[2][1] = 0.25  # the second crop is trusted less
    before = [part.clone() for part in parts]
    images, target, weight = cut_mix(parts, np.random.default_rng(0), 1.0, 0)
    pasted = images[0, 0] == 1
    assert 0.05 * pasted.numel() < pasted.sum() < 0.55 * pasted.numel()
    assert torch.equal(target[0, 1] == 1, pasted)
    assert torch.equal(weight[0, 0] == 0.25, pasted)
    assert torch.equal(images[1, 0] == 0, weight[1, 0] == 1)
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))


def test_along_the_seam_only_the_foreground_is_learned():
    images, _, weight = cut_mix(batch(), np.random.default_rng(0), 1.0, 3)
    pasted = images[0, 0] == 1
    rows, columns = torch.nonzero(pasted.any(1))[:, 0], torch.nonzero(pasted.any(0))[:, 0]
    top, left = int(rows[0]), int(columns[0])
    bottom, right = int(rows[-1]), int(columns[-1])
    assert (weight[:, 0] == 1).all()
    for y in range(32):
        for x in range(32):
            near_row = min(abs(y - top + 0.5) if top else 99, abs(y - bottom - 0.5) if bottom < 31 else 99)
            near_column = min(abs(x - left + 0.5) if left else 99, abs(x - right - 0.5) if right < 31 else 99)
            beside_rows = top - 3 <= y <= bottom + 3
            beside_columns = left - 3 <= x <= right + 3
            seam = (near_row < 3 and beside_columns) or (near_column < 3 and beside_rows)
            assert float(weight[0, 1, y, x]) == float(not seam), (y, x)


def test_never_and_alone():
    parts = batch()
    assert cut_mix(parts, np.random.default_rng(0), 0.0, 3) is parts
    single = batch(1)
    assert cut_mix(single, np.random.default_rng(0), 1.0, 3) is single


def test_the_generator_decides():
    first, second, other = (cut_mix(batch(4), np.random.default_rng(seed), 0.5, 0)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

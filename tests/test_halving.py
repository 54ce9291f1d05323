"""Several images at once where memory holds them, fewer where it does not."""

import warnings

import numpy as np
import pytest
import torch

from cellseg.config import ModelConfig, PredictConfig
from cellseg.core import CellsegError
from cellseg.halving import Most, look_in_batches, ran_out
from cellseg.predict import Segmenter

IMAGES = list(np.arange(11 * 4 * 5 * 3, dtype=np.float32).reshape(11, 4, 5, 3))


class Small:
    """A network whose device holds only so many images."""

    def __init__(self, holds, error=None):
        self.holds, self.shown = holds, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    def __call__(self, images):
        self.shown.append(len(images))
        if len(images) > self.holds:
            raise self.error
        return torch.from_numpy(images).permute(0, 3, 1, 2)


def seen(look, most):
    return [maps.numpy().transpose(1, 2, 0) for maps in look_in_batches(look, IMAGES, most)]


@pytest.mark.parametrize("count", [1, 4, 11, 30])
def test_every_image_is_shown_once_and_in_order(count):
    look = Small(holds=99)
    assert np.array_equal(seen(look, Most(count)), IMAGES)
    assert look.shown == [count] * (11 // count) + ([11 % count] if 11 % count else [])


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "mps", "cublas", "cudnn", "algorithm", "find", "get", "python"],
)
def test_memory_that_ends_halves_the_batch_for_good_and_says_so_once(error):
    look, most = Small(2, error), Most(8)
    with pytest.warns(UserWarning) as said:
        assert np.array_equal(seen(look, most), IMAGES)
    assert [str(one.message) for one in said] == ["out of memory with 8 windows at once, going on with 2"]
    assert look.shown == [8, 4, 2, 2, 2, 2, 2, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen(look, most)
    assert look.shown[8:] == [2, 2, 2, 2, 2, 1]


def test_memory_that_ends_with_one_image_is_told_in_one_line():
    with pytest.raises(CellsegError, match=r"out of memory while the network sees 4 x 5 pixels; a smaller --block"):
        seen(Small(0), Most(3))


def test_other_errors_are_nobodys_business():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        seen(Small(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), Most(3))
    assert not ran_out(ValueError("out of memory"))


def test_cudnn_that_has_no_engine_for_one_image_either_says_so_itself():
    look = Small(0, RuntimeError("GET was unable to find an engine to execute this computation"))
    with pytest.raises(RuntimeError, match="unable to find an engine"):
        seen(look, Most(4))
    assert look.shown == [4, 2, 1]


def test_maps_share_no_memory():
    first, second = list(look_in_batches(Small(9), IMAGES[:2], Most(2)))
    assert first.untyped_storage().nbytes() == first.nbytes
    assert second.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()


class Full(torch.nn.Module):
    """Repeats the first channel three times; memory ends above two images."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, images):
        self.shown.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images[:, :1].repeat(1, 3, 1, 1)


def test_a_segmenter_goes_on_with_fewer_windows_and_the_same_maps():
    image = np.random.default_rng(0).random((200, 230, 3), np.float32)
    maps, networks = [], [Full(), Full()]
    for network, count in zip(networks, (1, 8), strict=True):
        settings = PredictConfig(tile=64, batch_size=count, precision="off")
        maps.append(Segmenter(network, ModelConfig(), settings, torch.device("cpu"), {}).maps)
    alone = maps[0](image)
    with pytest.warns(UserWarning, match="out of memory with 5 windows at once, going on with 2"):
        several = maps[1](image)  # four rows of five windows
    assert networks[1].shown == [5, *[2, 2, 1] * 4]
    assert np.allclose(several, alone, atol=1e-5)

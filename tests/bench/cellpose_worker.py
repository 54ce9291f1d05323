"""What Cellpose itself says, for ``make cellpose-equal`` and for the fixture of ``tests/test_cellpose.py``.

Runs in the environment of the peers (``make bench-env``) and needs nothing of cellseg::

    .venv-bench/bin/python tests/bench/cellpose_worker.py fixture tests/fixtures/cellpose_tiny.npz
    .venv-bench/bin/python tests/bench/cellpose_worker.py weights FILE         # a full-size network, random weights
    .venv-bench/bin/python tests/bench/cellpose_worker.py run FILE IN.npz OUT.npz

There are no pretrained weights in it: weights are random, and so are all statistics and factors of batch norm.
"""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import version

import numpy as np
import torch
from cellpose import models
from cellpose.core import run_net
from cellpose.dynamics import labels_to_flows
from cellpose.resnet_torch import CPnet
from cellpose.transforms import pad_image_ND

logging.disable(logging.WARNING)
CPU = torch.device("cpu")
TINY = [2, 3, 5]
"""Input channels and widths of the fixture's network: all different, so that a mixed-up axis is seen."""


def random_network(nbase: list[int], diam_mean: float, diam_labels: float, seed: int) -> CPnet:
    torch.manual_seed(seed)
    net = CPnet(nbase, 3, sz=3, diam_mean=diam_mean)
    net.diam_labels.data.fill_(diam_labels)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(0, 0.2)
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
            layer.num_batches_tracked.random_(1, 1000)
    return net.eval()


def packed(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Pack a state dict into one vector of float32 (whole numbers below 2**24 are exact), names and shapes."""
    described = [[name, list(value.shape), str(value.dtype).removeprefix("torch.")] for name, value in state.items()]
    values = torch.cat([value.detach().float().ravel() for value in state.values()]).numpy()
    return {"state": np.array(json.dumps(described)), "values": values}


def fixture(out: str) -> None:
    net = random_network(TINY.copy(), 17.0, 23.25, seed=0)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rng = np.random.default_rng(0)
    batch = rng.random((2, 2, 16, 16), np.float32)
    image = rng.random((21, 30, 2), np.float32)
    with torch.no_grad():
        in_eval = net(torch.from_numpy(batch))[0].numpy()
        padded, rows, columns = pad_image_ND(image.transpose(2, 0, 1))  # as run_net, which wants 256 style channels
        whole = net(torch.from_numpy(padded)[None])[0].numpy()[0][:, rows][:, :, columns]
        in_training = net.train()(torch.from_numpy(batch))[0].numpy()
    labels = np.zeros((24, 30), np.int32)
    labels[3:10, 4:15], labels[12:22, 8:14], labels[10:20, 14:28] = 1, 2, 3
    np.savez_compressed(
        out,
        made_with=f"cellpose {version('cellpose')}, torch {torch.__version__}",
        batch=batch,
        in_eval=in_eval,
        in_training=in_training,
        running_mean=net.output[0].running_mean.numpy(),
        image=image,
        whole=whole,
        labels=labels,
        flows=labels_to_flows([labels.copy()], device=CPU)[0][2:],
        **packed(state),
    )


def run_whole(net: CPnet, image: np.ndarray) -> np.ndarray:
    """Run a normalised image ``(H, W, 2)`` the way Cellpose predicts, border and tiles included: ``(3, H, W)``."""
    return run_net(net, image[None])[0][0].transpose(2, 0, 1)


def weights(path: str) -> None:
    random_network([2, 32, 64, 128, 256], 30.0, 27.5, seed=1).save_model(path)


def run(path: str, source: str, out: str) -> None:
    given = np.load(source)
    quick, plain = (models.CellposeModel(pretrained_model=path, gpu=False, mkldnn=mkldnn) for mkldnn in (True, False))
    with torch.no_grad():
        maps = plain.net.eval()(torch.from_numpy(given["batch"]))[0].numpy()
    raw = {}
    for key in ("grey", "large"):
        _, flows, _ = plain.eval(given[key], channels=[0, 0], diameter=plain.diam_mean, compute_masks=False)
        raw[key] = np.concatenate([flows[1], flows[2][None]])
    np.savez_compressed(
        out,
        cellpose=version("cellpose"),
        batch=maps,
        whole=run_whole(plain.net, given["image"]),
        whole_mkldnn=run_whole(quick.net, given["image"]),
        **raw,
        flows=labels_to_flows([given["labels"].copy()], device=CPU)[0][2:],
        diameters=np.array([plain.diam_mean, plain.diam_labels]),
    )


if __name__ == "__main__":
    {"fixture": fixture, "weights": weights, "run": run}[sys.argv[1]](*sys.argv[2:])

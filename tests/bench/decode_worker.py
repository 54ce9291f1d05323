"""Targets and decoders, one method a process: driven by ``bench_inference_decode.py``.

Every method makes the targets of a label image (``state["labels"]``, a file), and decodes from them the labels again;
what a perfect network would have answered is made between the two, outside the clock.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from turns_worker import Parts, serve

THREADS = int(os.environ.get("BENCH_THREADS", "1"))


class Oracle:
    """Labels, targets and perfect maps, each made once."""

    def __init__(self, state: dict, encode: Callable, ideal: Callable):
        self.state, self.encode, self.ideal = state, encode, ideal

    @property
    def labels(self) -> np.ndarray:
        if "image" not in self.state:
            self.state["image"] = np.load(self.state["labels"])
        return self.state["image"]

    def targets(self) -> object:
        return self.encode(self.labels)

    def ready(self) -> bool:
        return self.maps() is not None

    def maps(self) -> object:
        if "maps" not in self.state:
            self.state["maps"] = self.ideal(self.state["targets"] if "targets" in self.state else self.targets())
        return self.state["maps"]


def ours(name: str) -> Callable[[dict], Parts]:
    def make(state: dict) -> Parts:
        import cv2

        from cellseg.instances import representation

        cv2.setNumThreads(THREADS)
        module = representation(name)
        oracle = Oracle(state, module.encode, module.ideal_maps)
        parts: Parts = {"targets": oracle.targets, "prepare": oracle.ready}
        parts["decode"] = lambda: module.decode(oracle.maps())
        if name == "flow":
            parts["decode, checked"] = lambda: module.decode(oracle.maps(), flow_threshold=0.4)
        return parts

    return make


def tensors(state: dict) -> Parts:
    import torch

    from cellseg.instances import flow
    from cellseg.models import flow_torch

    torch.set_num_threads(THREADS)
    oracle = Oracle(state, flow.encode, lambda target: torch.from_numpy(flow.ideal_maps(target)))
    return {"prepare": oracle.ready, "decode": lambda: flow_torch.decode(oracle.maps()).numpy()}


def cellpose(state: dict) -> Parts:
    """As its ``CellposeModel.eval`` decodes by default, but that the smallest cell has as many pixels as ours."""
    import logging

    import torch
    from cellpose import dynamics

    logging.disable(logging.WARNING)
    torch.set_num_threads(THREADS)
    cpu = torch.device("cpu")

    def encode(labels: np.ndarray) -> np.ndarray:
        return dynamics.labels_to_flows([labels.copy()], device=cpu)[0]

    def ideal(target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (5 * target[2:]).astype(np.float32), np.where(target[1] > 0, 8, -8).astype(np.float32)

    def decode(flow_threshold: float) -> np.ndarray:
        flow, foreground = oracle.maps()
        return dynamics.compute_masks(flow, foreground, flow_threshold=flow_threshold, min_size=10, device=cpu)

    oracle = Oracle(state, encode, ideal)
    dynamics.labels_to_flows([np.pad(np.ones((5, 5), np.int32), 5)], device=cpu)  # numba compiles
    parts: Parts = {"targets": oracle.targets, "prepare": oracle.ready}
    return parts | {"decode": lambda: decode(0.0), "decode, checked": lambda: decode(0.4)}


def stardist(step: int) -> Callable[[dict], Parts]:
    """Make StarDist's own targets and polygons, 32 rays, predicted at every ``step``-th pixel along an axis."""

    def make(state: dict) -> Parts:
        from stardist.geometry import polygons_to_label, star_dist
        from stardist.nms import non_maximum_suppression
        from stardist.utils import edt_prob

        def encode(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return star_dist(labels, 32, grid=(step, step)), edt_prob(labels)[::step, ::step]

        def decode() -> np.ndarray:
            distances, probability = oracle.maps()
            points, scores, found = non_maximum_suppression(
                distances, probability, grid=(step, step), prob_thresh=0.5, nms_thresh=0.4
            )
            return polygons_to_label(found, points, shape=oracle.labels.shape, prob=scores)

        oracle = Oracle(state, encode, lambda target: target)
        return {"targets": oracle.targets, "prepare": oracle.ready, "decode": decode}

    return make


def instanseg(state: dict) -> Parts:
    """InstanSeg's post-processing, its learned pixel classifier set by hand: inside is what points at the seed."""
    import torch
    from instanseg.utils.loss.instanseg_loss import InstanSeg, generate_coordinate_map

    torch.set_num_threads(THREADS)
    method = InstanSeg(n_sigma=1, device="cpu", binary_loss_fn_str="lovasz_hinge")
    network = torch.nn.Module()
    method.initialize_pixel_classifier(network, MLP_width=10)
    set_classifier(method.pixel_classifier)

    def ideal(labels: np.ndarray) -> object:
        from scipy import ndimage

        place = generate_coordinate_map("linear", 2, *labels.shape, device=torch.device("cpu")).numpy()
        index = np.arange(1, labels.max() + 1)  # ids are consecutive
        middle = [np.append(0.0, ndimage.mean(axis, labels, index))[labels] for axis in place]
        away = np.where(labels > 0, np.stack(middle) - place, 0)
        share = np.clip(away / 8 + 0.5, 1e-4, 1 - 1e-4)
        distance = ndimage.distance_transform_edt(labels > 0)
        highest = np.append(1.0, ndimage.maximum(distance, labels, index))[labels]
        seed = np.where(labels > 0, 15 * (distance / highest - 0.45), -15)
        maps = [*np.log(share / (1 - share)), np.where(labels > 0, 0, 1), seed]
        return torch.from_numpy(np.stack(maps).astype(np.float32))

    def decode() -> np.ndarray:
        with torch.no_grad():
            return method.postprocessing(oracle.maps(), window_size=128)[0].numpy()

    oracle = Oracle(state, lambda labels: labels, ideal)
    return {"prepare": oracle.ready, "decode": decode}


def set_classifier(net: object) -> None:
    """Set the layers to 10 − 60 (abs(dx) + abs(dy) + sigma), in InstanSeg's coordinates; sigma is 1 outside cells."""
    import torch

    with torch.no_grad():
        for layer in (net.fc1, net.fc2, net.fc3):
            layer.weight.zero_()
            layer.bias.zero_()
        for unit, (axis, sign) in enumerate([(0, 1), (0, -1), (1, 1), (1, -1), (2, 1)]):
            net.fc1.weight[unit, axis] = sign
            net.fc2.weight[unit, unit] = 1
            net.fc3.weight[0, unit] = -60
        net.fc3.bias.fill_(10)


METHODS = {
    **{f"cellseg {name}": ("cellseg", ours(name)) for name in ("flow", "distance", "boundary")},
    "cellseg flow on tensors": ("cellseg", tensors),
    "cellpose": ("cellpose", cellpose),
    "stardist": ("stardist", stardist(1)),
    "stardist, every 2nd pixel": ("stardist", stardist(2)),
    "instanseg": ("instanseg-torch", instanseg),
}

if __name__ == "__main__":
    serve(METHODS)

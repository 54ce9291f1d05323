"""LIVECell's COCO scores: against pycocotools' own COCOeval, and against answers known by counting."""

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cellseg.core import CellsegError
from cellseg.datasets.coco import decode_polygons, paint, rasterise, read_coco
from cellseg.metrics.coco_ap import CocoTruth, encode_labels, livecell_ap

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "afnr")


def square(top, left, size, shape=(64, 64)):
    mask = np.zeros(shape, np.uint8)
    mask[top : top + size, left : left + size] = 1
    return mask


def truth_of(masks, areas=None, shape=(64, 64)):
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]
    areas = [mask.sum() for mask in masks] if areas is None else areas
    return CocoTruth(*shape, encoded, np.array(areas, float))


def labels_of(masks, shape=(64, 64)):
    labels = np.zeros(shape, np.int32)
    for number, mask in enumerate(masks, start=1):
        labels[mask > 0] = number
    return labels


def grid(count, columns, size=6, step=8):
    shape = (step * -(-count // columns), step * columns)
    return [square(step * (n // columns), step * (n % columns), size, shape) for n in range(count)], shape


# ---- against pycocotools


def reference(dataset, results, image_ids=None):
    """COCOeval as LIVECell's script sets it up, with the numbers taken from its arrays as its summary takes them."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = dataset
        gt.createIndex()
        coco = COCOeval(gt, gt.loadRes(results), "segm")
        coco.params.catIds, coco.params.useCats = [1], 0
        coco.params.maxDets = [100, 500, 2000]
        coco.params.areaRng = [[0, 1e10], [0, 18**2], [18**2, 31**2], [31**2, 1e10]]
        coco.params.areaRngLbl = ["all", "small", "medium", "large"]
        coco.params.imgIds = coco.params.imgIds if image_ids is None else image_ids
        coco.evaluate()
        coco.accumulate()

    def mean(values):
        return np.mean(values[values > -1]) if np.any(values > -1) else np.nan

    precision, recall = coco.eval["precision"], coco.eval["recall"]
    at = {threshold: np.where(threshold == coco.params.iouThrs)[0] for threshold in (0.5, 0.75)}
    wanted = [mean(precision[:, :, :, 0, 2]), *(mean(precision[at[t]][:, :, :, 0, 2]) for t in (0.5, 0.75))]
    wanted += [mean(precision[:, :, :, area, 2]) for area in (1, 2, 3)]
    return dict(zip(NAMES, [*wanted, mean(1 - recall[:, :, 0, 2])], strict=True))


def results_of(image_id, labels, scores):
    ids = np.unique(labels[labels > 0])
    for number, score in zip(ids, scores, strict=True):
        yield {
            "image_id": image_id, "category_id": 1, "score": float(score),
            "segmentation": coco_mask.encode(np.asfortranarray(labels == number)),
        }  # fmt: skip


def assert_equal(scores, wanted):
    for name in NAMES:
        assert getattr(scores, name) == pytest.approx(wanted[name], abs=1e-12, nan_ok=True), name


def perturb(image, annotations, rng):
    """Drop a quarter of the annotated cells, shift a half by up to 4 px, and give every cell a score."""
    polygons = []
    for annotation in annotations:
        fate = rng.random()
        if fate >= 0.25:
            shift = rng.integers(-4, 5, 2) if fate < 0.75 else np.zeros(2, int)
            rings = decode_polygons(annotation)
            moved = [(np.reshape(ring, (-1, 2)) + shift).ravel() for ring in rings]
            polygons.append([np.clip(ring, 0, 704).tolist() for ring in moved])
    labels = paint(polygons, image.height, image.width).labels
    return labels, rng.random(len(np.unique(labels)) - 1)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("part", "most", "n_images", "n_annotations"),
    [("val", 200, 4, 532), ("test", 300, 6, 893), pytest.param("val", 1000, 5, 1243, marks=pytest.mark.slow)],
)
def test_real_annotations_perturbed_score_as_pycocotools_scores_them(shared_data, part, most, n_images, n_annotations):
    """On the sample's images of up to ``most`` cells: COCOeval needs ten seconds for one of 700."""
    path = shared_data / "livecell" / "annotations" / "LIVECell" / f"livecell_coco_{part}.json"
    file, rng = read_coco(path), np.random.default_rng(0)
    truths, predictions, results = [], [], []
    chosen = sorted(image.id for image in file.images if len(file.annotations[image.id]) <= most)
    for image in sorted((one for one in file.images if one.id in chosen), key=lambda one: one.id):
        annotations = file.annotations[image.id]
        masks = rasterise([decode_polygons(one) for one in annotations], image.height, image.width)
        truths.append(CocoTruth(image.height, image.width, masks, np.array([one.area for one in annotations])))
        predictions.append(perturb(image, annotations, rng))
        results += results_of(image.id, *predictions[-1])
    scores = livecell_ap(truths, predictions)
    wanted = reference(json.loads(path.read_text(encoding="utf-8")), results, chosen)
    assert 0.2 < wanted["ap"] < 0.8
    assert_equal(scores, wanted)
    assert (scores.n_images, scores.n_annotations, scores.n_predictions) == (n_images, n_annotations, len(results))


@pytest.mark.parametrize("seed", range(20))
def test_crowded_random_images_score_as_pycocotools_scores_them(seed):
    """Overlapping truths of all sizes, tied scores, areas that disagree with the masks, images without cells."""
    rng = np.random.default_rng(seed)
    shape, truths, predictions, results = (96, 96), [], [], []
    dataset = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    for image_id in range(4):
        boxes = [(*rng.integers(0, 70, 2), rng.integers(4, 40)) for _ in range(rng.integers(0, 25))]
        masks = [square(*box, shape) for box in boxes]
        near = [(abs(y + rng.integers(-2, 3)), abs(x + rng.integers(-2, 3)), size) for y, x, size in boxes]
        labels = labels_of([square(*box, shape) for box in near[: rng.integers(0, 25)]], shape)
        scores = rng.integers(0, 4, len(np.unique(labels[labels > 0]))) / 4
        truths.append(truth_of(masks, [mask.sum() * rng.uniform(0.8, 1.2) for mask in masks], shape))
        predictions.append((labels, scores))
        dataset["images"].append({"id": image_id, "height": shape[0], "width": shape[1]})
        for mask, area in zip(truths[-1].masks, truths[-1].areas, strict=True):
            number = len(dataset["annotations"]) + 1
            entry = {"id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "area": area}
            dataset["annotations"].append({**entry, "segmentation": mask})
        results += results_of(image_id, labels, scores)
    assert_equal(livecell_ap(truths, predictions), reference(dataset, results))


def test_labels_are_encoded_as_pycocotools_encodes_masks():
    labels = np.random.default_rng(0).integers(0, 5, (17, 23)).astype(np.int32) * 7
    labels[-1, -1] = 7
    expected = [coco_mask.encode(np.asfortranarray(labels == number, np.uint8)) for number in (7, 14, 21, 28)]
    assert encode_labels(labels) == expected
    assert encode_labels(np.zeros((3, 4), np.int32)) == []
    whole = np.ones((3, 4), np.int32)
    assert encode_labels(whole) == [coco_mask.encode(np.asfortranarray(whole, np.uint8))]


# ---- answers known by counting


def test_a_perfect_prediction_scores_one_and_misses_nothing(capsys):
    masks = [square(2, 2, 10), square(20, 2, 20), square(2, 30, 32)]
    scores = livecell_ap([truth_of(masks)], [(labels_of(masks), np.array([0.2, 0.9, 0.5]))])
    assert [getattr(scores, name) for name in NAMES] == pytest.approx([1, 1, 1, 1, 1, 1, 0], abs=1e-12)
    assert (scores.n_images, scores.n_annotations, scores.n_predictions) == (1, 3, 3)
    assert capsys.readouterr().out == ""


def test_half_missed():
    masks, shape = grid(10, 5)
    scores = livecell_ap([truth_of(masks, shape=shape)], [(labels_of(masks[:5], shape), None)])
    assert scores.afnr == pytest.approx(0.5, abs=1e-12)
    assert scores.ap == pytest.approx(51 / 101, abs=1e-12)  # precision 1 at the recalls 0, .01, ..., .50


def test_a_false_detection_costs_what_its_rank_says():
    masks = [square(2, 2, 10), square(20, 2, 10), square(40, 2, 10)]
    truth, labels = truth_of(masks[:2]), labels_of(masks)
    assert livecell_ap([truth], [(labels, np.array([0.9, 0.8, 0.1]))]).ap == pytest.approx(1, abs=1e-12)
    # Ranked first it leaves precision 1/2, then 2/3; the interpolated precision is 2/3 everywhere.
    assert livecell_ap([truth], [(labels, np.array([0.5, 0.4, 0.6]))]).ap == pytest.approx(2 / 3, abs=1e-12)


def test_halves_of_a_cell_compete_and_the_surer_one_wins():
    labels = labels_of([square(0, 0, 10)])
    labels[:5][labels[:5] > 0] = 2  # two halves, IoU 0.5 each
    scores = livecell_ap([truth_of([square(0, 0, 10)])], [(labels, np.array([0.1, 0.9]))])
    assert scores.ap50 == pytest.approx(1, abs=1e-12)
    assert scores.afnr == pytest.approx(0.9, abs=1e-12)  # found at .50 alone, and once


def test_a_detection_takes_the_true_cell_it_fits_best():
    whole, half = square(0, 0, 10), square(0, 0, 10)
    half[5:] = 0
    labels = labels_of([whole])
    labels[5:][labels[5:] > 0] = 2
    # The upper half fits both true cells (IoU 1 and 0.5); taking the half leaves the whole to the lower half.
    scores = livecell_ap([truth_of([half, whole])], [(labels, np.array([0.9, 0.1]))])
    assert scores.afnr == pytest.approx((0 + 9 * 0.5) / 10, abs=1e-12)


def test_areas_decide_by_the_annotation_and_both_ends_belong():
    masks = [square(2, 2, 10), square(20, 2, 20), square(2, 30, 32)]
    found = livecell_ap([truth_of(masks)], [(labels_of([0 * masks[0], masks[1]]), None)])
    assert (found.ap_small, found.ap_large) == (0, 0)
    assert found.ap_medium == pytest.approx(1, abs=1e-12)
    assert found.ap == pytest.approx(34 / 101, abs=1e-12)  # recalls 0, .01, ..., .33
    edge = square(2, 2, 18)  # 324 px: small and medium
    both = livecell_ap([truth_of([edge])], [(labels_of([edge]), None)])
    assert (both.ap_small, both.ap_medium) == pytest.approx((1, 1), abs=1e-12)
    assert np.isnan(both.ap_large)
    said_large = livecell_ap([truth_of([edge], [961])], [(labels_of([edge]), None)])
    assert (said_large.ap_medium, said_large.ap_large) == pytest.approx((1, 1), abs=1e-12)
    assert np.isnan(said_large.ap_small)


def test_overlapping_true_cells_are_kept_but_a_label_image_cannot_hold_both_whole():
    upper, lower = np.zeros((2, 12, 10), np.uint8)
    upper[:10], lower[2:] = 1, 1  # 10 rows each, 8 shared
    truth = truth_of([upper, lower], shape=(12, 10))
    labels = np.ones((12, 10), np.int32)
    labels[6:] = 2  # 6 rows each, inside its cell: IoU 0.6
    split = livecell_ap([truth], [(labels, None)])
    assert split.n_annotations == 2
    assert split.afnr == pytest.approx(0.7, abs=1e-12)  # both found at .50, .55 and .60
    labels = np.where(upper > 0, 1, 2).astype(np.int32)  # all of the upper, 2 rows of the lower: IoU 1 and 0.2
    assert livecell_ap([truth], [(labels, None)]).afnr == pytest.approx(0.5, abs=1e-12)


def test_two_thousand_detections_an_image_count_and_no_more():
    masks, shape = grid(150, 15)
    assert livecell_ap([truth_of(masks, shape=shape)], [(labels_of(masks, shape), None)]).afnr == 0
    labels = np.zeros((3 * 42, 3 * 50), np.int32)
    labels[::3, ::3] = np.arange(1, 2101).reshape(42, 50)
    crowded = livecell_ap([CocoTruth(*labels.shape, encode_labels(labels), np.ones(2100))], [(labels, None)])
    assert crowded.n_predictions == 2100
    assert crowded.afnr == pytest.approx(100 / 2100, abs=1e-12)
    assert crowded.ap == pytest.approx(96 / 101, abs=1e-12)  # 2000 / 2100 = .952: recalls 0, .01, ..., .95


def test_nothing_predicted_and_nothing_to_find():
    masks, empty = [square(2, 2, 10)], np.zeros((64, 64), np.int32)
    nothing = livecell_ap([truth_of(masks), truth_of([])], [(empty, None), (empty, None)])
    assert (nothing.ap, nothing.ap50, nothing.afnr, nothing.n_images) == (0, 0, 1, 2)
    no_truth = livecell_ap([truth_of([])], [(labels_of(masks), None)])
    assert all(np.isnan(getattr(no_truth, name)) for name in NAMES)
    # A detection where there is no cell is false in the set it belongs to; ranked second, after the only true one.
    false = livecell_ap([truth_of([]), truth_of(masks)], [(labels_of(masks), None), (labels_of(masks), None)])
    assert false.ap == pytest.approx(0.5, abs=1e-12)  # equal scores: the first image's false one comes first


def test_no_scores_are_the_constant_one():
    masks, shape = grid(4, 2)
    truth, labels = truth_of(masks[:3], shape=shape), labels_of(masks[1:], shape)
    assert livecell_ap([truth], [(labels, None)]) == livecell_ap([truth], [(labels, np.ones(3))])


@pytest.mark.parametrize("scores", [np.ones(3), np.array([1, np.nan]), np.ones((2, 1))])
def test_scores_must_be_one_finite_number_a_cell(scores):
    masks = [square(2, 2, 10), square(20, 2, 10)]
    with pytest.raises(CellsegError, match="one finite score for each of 2 cells"):
        livecell_ap([truth_of(masks)], [(labels_of(masks), scores)])


def test_sizes_and_lengths_must_agree():
    with pytest.raises(CellsegError, match=r"\(64, 60\) but the truth is \(64, 64\)"):
        livecell_ap([truth_of([])], [(np.zeros((64, 60), np.int32), None)])
    with pytest.raises(ValueError, match="shorter"):
        livecell_ap([truth_of([])], [])

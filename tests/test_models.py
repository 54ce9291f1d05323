import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from cellseg.checkpoint import load_weights, save_weights
from cellseg.config import ModelConfig, check_config
from cellseg.core import CellsegError
from cellseg.models.build import build_from, build_model
from cellseg.models.norms import ChannelsLastInstanceNorm
from cellseg.models.teacher import EmaTeacher
from cellseg.optimizer import build_optimizer
from cellseg.regularizers import L2SP
from cellseg.train import make_fabric, start

NETWORKS = {
    "half_unet": ModelConfig(size="tiny"),
    "unet": ModelConfig(network="unet", size="tiny"),
    "efficientnet-b0": ModelConfig(network="flexible_unet"),
    "resnet18": ModelConfig(network="flexible_unet", backbone="resnet18"),
}
WITH_BATCH_NORM = {
    "half_unet": ModelConfig(size="tiny", norm="batch"),
    "unet": ModelConfig(network="unet", size="tiny", norm="batch"),
    "efficientnet-b0": NETWORKS["efficientnet-b0"],
}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def steps(model, count, *, lr=0.01):
    """Train on random images for a few steps of SGD."""
    run = check_config({"train": {"optimizer": "sgd", "lr": lr}})
    optimizer = build_optimizer(run, model, decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        model(torch.rand(2, 3, 64, 64, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def tensors(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before, module):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize(
    "config", [*NETWORKS.values(), *WITH_BATCH_NORM.values()], ids=lambda c: f"{c.network}-{c.norm}"
)
def test_any_input_size_keeps_its_size(config):
    model = build_model(config).eval()
    for shape in [(64, 64), (33, 47), (200, 31), (8, 8)]:
        with torch.inference_mode():
            assert model(torch.rand(1, 3, *shape)).shape == (1, 3, *shape)


@pytest.mark.parametrize("network", ["half_unet", "unet"])
def test_group_norm_and_one_image_in_training(network):
    model = build_model(ModelConfig(network=network, size="tiny", norm="group")).train()
    assert model(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_replicates_the_border(name):
    model = build_model(NETWORKS[name]).eval()
    image = torch.rand(1, 3, 64, 50)
    padded = functional.pad(image, (0, -50 % model.multiple, 0, 0), mode="replicate")
    with torch.inference_mode():
        assert torch.equal(model(image), model(padded)[..., :50])


@pytest.mark.parametrize(
    ("network", "size", "millions"),
    [
        ("half_unet", "tiny", 0.48), ("half_unet", "small", 1.09), ("half_unet", "base", 1.93),
        ("unet", "tiny", 0.41), ("unet", "small", 0.92), ("unet", "base", 1.63),
    ],
)  # fmt: skip
def test_sizes(network, size, millions):
    assert parameters(build_model(ModelConfig(network=network, size=size))) / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_is_used(name):
    model = build_model(NETWORKS[name]).eval()
    model(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_load_back_with_their_configuration(name, tmp_path):
    model = build_model(NETWORKS[name])
    save_weights(tmp_path / "w.safetensors", model, NETWORKS[name], {"step": 3})
    again, config, about = load_weights(tmp_path / "w.safetensors")
    assert (config, about) == (NETWORKS[name], {"step": 3})
    assert changed(tensors(model), again) == set()


def test_backbones_need_neither_torchvision_nor_a_download():
    code = (
        "import socket, sys; socket.socket.connect = None\n"
        "from cellseg.config import ModelConfig; from cellseg.models.build import build_model\n"
        "for backbone in ('efficientnet-b0', 'resnet18'):\n"
        "    build_model(ModelConfig(network='flexible_unet', backbone=backbone))\n"
        "assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("network", ["half_unet", "unet"])
def test_dropout_acts_in_training_only(network):
    model = build_model(ModelConfig(network=network, size="tiny", dropout=0.5))
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


def test_channels_last_instance_norm_is_instance_norm():
    torch.manual_seed(0)
    features = torch.randn(3, 5, 7, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    own, theirs = ChannelsLastInstanceNorm(5, affine=True), nn.InstanceNorm2d(5, affine=True)
    with torch.no_grad():
        own.weight.copy_(torch.randn(5))
        own.bias.copy_(torch.randn(5))
    theirs.load_state_dict(own.state_dict())
    pull = torch.randn(3, 5, 7, 6)
    gradients = []
    for norm in (own, theirs):
        out = norm(features)
        gradients.append(torch.autograd.grad((out * pull).sum(), (features, norm.weight, norm.bias)))
        assert torch.allclose(out, theirs(features), atol=1e-5)
    assert own(features).is_contiguous(memory_format=torch.channels_last)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    assert torch.equal(own(features.contiguous()), theirs(features.contiguous()))


@pytest.mark.parametrize("name", WITH_BATCH_NORM)
def test_running_statistics_move_and_frozen_ones_do_not(name):
    torch.manual_seed(0)
    running = build_model(WITH_BATCH_NORM[name]).train()
    frozen = copy.deepcopy(running).freeze(statistics=True)
    buffers = {key for key, _ in running.named_buffers()}
    start_values = tensors(running)
    steps(running, 3)
    assert buffers <= changed(start_values, running)
    frozen.eval()
    frozen.train()  # as after a validation
    steps(frozen, 3)
    moved = changed(start_values, frozen)
    assert not moved & buffers
    affine = {key for key, layer in frozen.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert {f"{key}.weight" for key in affine} <= moved


@pytest.mark.parametrize("name", [*NETWORKS, "half_unet batch"])
def test_a_frozen_encoder_stays_bit_for_bit(name):
    torch.manual_seed(0)
    config = WITH_BATCH_NORM["half_unet"] if name == "half_unet batch" else NETWORKS[name]
    model = build_model(config).freeze(encoder=True).train()
    held = {id(value) for module in model.encoder() for value in [*module.parameters(), *module.buffers()]}
    names = {key for key, value in [*model.named_parameters(), *model.named_buffers()] if id(value) in held}
    before = tensors(model)
    steps(model, 3)
    moved = changed(before, model)
    assert not moved & names
    assert {key for key, value in model.named_parameters() if id(value) not in held} <= moved | dead_biases(model)


def dead_biases(model):
    """Biases before a normalisation: it takes them out again, so their gradient is zero up to rounding."""
    return {key for key, _ in model.named_parameters() if key.endswith("conv.bias")}


@pytest.mark.parametrize(
    ("name", "first", "outside"),
    [
        ("half_unet", "stem.", ("up.", "head.")),
        ("unet", "body.model.0.", ("body.model.2.", "head.")),
        ("resnet18", "body.encoder.conv1.", ("body.decoder.", "body.segmentation_head.")),
    ],
)
def test_where_the_encoder_ends(name, first, outside):
    model = build_model(NETWORKS[name]).freeze(encoder=True)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {key for key, _ in model.named_parameters()} - trained
    assert any(key.startswith(first) for key in frozen)
    for prefix in outside:
        assert any(key.startswith(prefix) for key in trained)
        assert not any(key.startswith(prefix) for key in frozen)
    assert len(list(model.encoder())) == {"half_unet": 4, "unet": 4, "resnet18": 1}[name]


def test_penalty_and_optimizer_ignore_a_frozen_encoder():
    model = build_model(NETWORKS["half_unet"]).freeze(encoder=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert [anchor.shape for anchor in L2SP(model, alpha=1.0).anchors] == [parameter.shape for parameter in trained]
    optimizer = build_optimizer(check_config({}), model, decay=0.0)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(parameter) for parameter in trained]


@pytest.mark.parametrize("kind", ["freeze_encoder", "freeze_norm_statistics"])
def test_training_freezes_what_the_run_says_and_nothing_of_fresh_weights(kind, tmp_path):
    config = WITH_BATCH_NORM["half_unet"]
    path = tmp_path / "w.safetensors"
    save_weights(path, build_model(config), config, {})
    values = {"model": config.model_dump(), "train": {kind: True, "ema": 0.5, "l2sp_alpha": 0.1, "precision": "off"}}
    run = check_config({**values, "train": values["train"] | {"init": str(path)}})
    state, _ = start(run, make_fabric(run, "cpu"))
    stem = next(layer for layer in state.student.module.stem.modules() if isinstance(layer, nn.BatchNorm2d))
    head = state.student.module.head
    assert (state.student.training, stem.training, head.training) == (True, False, True)
    assert stem.weight.requires_grad == (kind == "freeze_norm_statistics")
    with pytest.raises(CellsegError, match=rf"train\.{kind} keeps what train\.init brings"):
        start(check_config(values), make_fabric(run, "cpu"))


def test_teacher_averages_float_buffers_and_copies_integer_ones():
    student = nn.BatchNorm2d(2)
    teacher = EmaTeacher(student, 0.999)
    with torch.no_grad():
        student.running_mean.fill_(10.0)
        student.weight.fill_(3.0)
        student.num_batches_tracked.fill_(7)
    teacher.update(student, step=0)  # momentum min(1 - 1/10, .999) = .9
    assert teacher.model.running_mean.tolist() == pytest.approx([1.0, 1.0])
    assert teacher.model.weight.tolist() == pytest.approx([1.2, 1.2])
    assert teacher.model.num_batches_tracked.item() == 7


def test_teacher_of_a_network_averages_running_statistics_and_keeps_frozen_ones():
    for frozen in (False, True):
        student = build_model(WITH_BATCH_NORM["half_unet"]).freeze(statistics=frozen).train()
        teacher = EmaTeacher(student, 0.5)
        before = tensors(student)
        steps(student, 1)
        teacher.update(student, step=0)
        mine = dict(teacher.model.named_buffers())
        for name, value in student.named_buffers():
            middle = (before[name] + value) / 2 if value.is_floating_point() else value
            assert torch.allclose(mine[name], before[name] if frozen else middle)


def test_teacher_stays_in_eval_mode_and_without_gradients():
    teacher = EmaTeacher(build_model(ModelConfig(size="tiny")), 0.99)
    teacher.train()
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_an_adapter_is_the_identity_until_it_is_trained_and_a_start_may_lack_it():
    had, wanted = ModelConfig(size="tiny"), ModelConfig(size="tiny", adapter=True, dropout=0.5)
    start = build_model(had).eval()
    grown = build_from(start, had, wanted).eval()
    images = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        torch.testing.assert_close(grown(images), start(images))
    assert set(grown.state_dict()) - set(start.state_dict()) == {"adapter.weight", "adapter.bias"}
    assert torch.equal(grown.adapter.weight[..., 0, 0], torch.eye(16))
    assert build_from(start, had, had) is start
    assert build_from(grown, wanted, had) is None  # its adapter would be lost
    assert build_from(start, had, ModelConfig(size="small")) is None
    with pytest.raises(ValueError, match="adapter belongs to half_unet"):
        ModelConfig(network="unet", adapter=True)


def test_dropout_of_a_run_is_that_of_the_run_and_not_of_its_start():
    start = build_model(ModelConfig(size="tiny"))
    model = build_from(start, ModelConfig(size="tiny"), ModelConfig(size="tiny", dropout=0.5))
    assert {layer.p for layer in model.modules() if isinstance(layer, torch.nn.Dropout2d | torch.nn.Dropout)} == {0.5}
    assert all(torch.equal(value, start.state_dict()[name]) for name, value in model.state_dict().items())

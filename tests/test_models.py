import pytest
import torch
from torch import nn

from cellseg.config import ModelConfig
from cellseg.models.build import build_model
from cellseg.models.teacher import EmaTeacher


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_any_input_size_keeps_its_size(norm):
    model = build_model(ModelConfig(size="tiny", norm=norm)).eval()
    for shape in [(64, 64), (33, 47), (200, 31), (8, 8)]:
        with torch.inference_mode():
            assert model(torch.rand(1, 3, *shape)).shape == (1, 3, *shape)


@pytest.mark.parametrize(("size", "millions"), [("tiny", 0.48), ("small", 1.09), ("base", 1.93)])
def test_sizes(size, millions):
    model = build_model(ModelConfig(size=size))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


def test_dropout_acts_in_training_only():
    model = build_model(ModelConfig(size="tiny", dropout=0.5))
    image = torch.rand(1, 3, 32, 32)
    assert not torch.equal(model(image), model(image))
    model.eval()
    assert torch.equal(model(image), model(image))


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


def test_teacher_stays_in_eval_mode_and_without_gradients():
    teacher = EmaTeacher(build_model(ModelConfig(size="tiny")), 0.99)
    teacher.train()
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())

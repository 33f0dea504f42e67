"""On an accelerator the losses give what they give on the CPU, wherever their per-sample state lives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchstone.noise import EarlyLearningRegularization, GeneralizedCrossEntropy, SparseOverparamLoss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

N, C, B = 40, 5, 8


def trained(device: str, state: str, variant: str, autocast: bool = False) -> tuple[list[float], SparseOverparamLoss]:
    """Losses of ten steps of SOP with the network on ``device`` and u, v on ``state``."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(N, 6, generator=draw), torch.randint(C, (N,), generator=draw)
    net = nn.Linear(6, C)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) / 3)
    net.to(device)
    criterion = SparseOverparamLoss(N, C, init_std=0.1, variant=variant, generator=draw).to(state)
    sgd = [torch.optim.SGD(net.parameters(), lr=0.1), torch.optim.SGD(criterion.param_groups(1.0, 2.0))]
    losses = []
    for _ in range(10):
        index = torch.randperm(N, generator=draw)[:B]
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=autocast):
            loss = criterion(net(x[index].to(device)), y[index].to(device), index.to(device))
        for each in sgd:
            each.zero_grad()
        loss.backward()
        for each in sgd:
            each.step()
        if variant == "paper":
            criterion.project_(index)
        losses.append(loss.item())
    return losses, criterion


@pytest.mark.parametrize("variant", ["code", "paper"])
@pytest.mark.parametrize("state", ["cuda", "cpu"])
def test_sop_on_a_gpu_equals_sop_on_a_cpu(variant: str, state: str) -> None:
    here, on_cpu = trained("cpu", "cpu", variant)
    there, on_gpu = trained("cuda", state, variant)
    assert there == pytest.approx(here, rel=1e-4)
    torch.testing.assert_close(on_gpu.u.cpu(), on_cpu.u, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(on_gpu.v.cpu(), on_cpu.v, rtol=1e-3, atol=1e-5)
    assert on_gpu.u.device.type == state


def test_sop_under_autocast_stays_finite() -> None:
    losses, _ = trained("cuda", "cuda", "code", autocast=True)
    assert torch.tensor(losses).isfinite().all()


def test_elr_and_gce_on_a_gpu_equal_those_on_a_cpu() -> None:
    logits, y = torch.randn(B, C), torch.randint(C, (B,))
    index = torch.randperm(N)[:B]
    elr = EarlyLearningRegularization(N, C)
    same = copy.deepcopy(elr).cuda()
    for _ in range(3):
        here, there = elr(logits, y, index), same(logits.cuda(), y.cuda(), index.cuda())
        torch.testing.assert_close(there.cpu(), here)
    torch.testing.assert_close(same.targets.cpu(), elr.targets)
    gce = GeneralizedCrossEntropy()
    torch.testing.assert_close(gce(logits.cuda(), y.cuda()).cpu(), gce(logits, y))

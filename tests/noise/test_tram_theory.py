"""What the two heads of TRAM converge to, where the distribution of the labels is known."""

from __future__ import annotations

import torch
from torch import nn

from torchstone.noise import TRAM, TRAMLoss, marginalize


def test_the_head_without_pi_comes_to_the_mean_over_annotators():
    # Four inputs, three annotators of different error and frequency; the labels are the exact distribution.
    draws = torch.Generator().manual_seed(0)
    p_annotator = torch.tensor([0.5, 0.3, 0.2])
    p_label = torch.randn(4, 3, 3, generator=draws).mul(1.5).softmax(-1)  # input, annotator, class
    features = nn.Embedding.from_pretrained(torch.eye(4), freeze=True)
    net = TRAM(features, 4, 0, 3, width=16, pi_embedding=nn.Embedding(3, 16), generator=draws)
    with torch.no_grad():
        net.pi_head.embedding.weight.copy_(torch.randn(3, 16, generator=draws))  # pyright: ignore
    x, ids, y = torch.cartesian_prod(torch.arange(4), torch.arange(3), torch.arange(3)).unbind(1)
    weight = p_annotator[ids] * p_label[x, ids, y]
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        output = net(x, ids)
        assert output.logits_pi is not None
        # Each case in the weight that it has among infinitely many labels.
        loss = sum(weight[i] * TRAMLoss()((output.logits[i : i + 1], output.logits_pi[i : i + 1]), y[i : i + 1])
                   for i in range(len(y)))  # fmt: skip
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        return loss

    optimizer.step(closure)
    exact = (p_annotator[:, None] * p_label).sum(1)
    with torch.no_grad():
        direct = net.eval()(torch.arange(4)).logits.log_softmax(1)
        marginal = marginalize(net, torch.arange(4), torch.arange(3), weights=p_annotator)
        learnt = net(torch.arange(4), torch.arange(3).expand(4, 3)).logits_pi
    assert learnt is not None
    assert float((exact * (exact.log() - direct)).sum(1).max()) < 1e-3
    assert float((exact * (exact / marginal).log()).sum(1).max()) < 1e-3
    assert float((p_label * (p_label.log() - learnt.log_softmax(-1))).sum(-1).max()) < 1e-3

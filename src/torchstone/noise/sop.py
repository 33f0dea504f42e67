"""Sparse over-parameterization (SOP): learn the label noise of each training sample beside the network.

Sample i gets a number u_i and a vector v_i, trained by plain SGD from almost nothing. Their squares say how much label
noise put on the given label and took from the others; tiny start and plain SGD together act like an l1 penalty, so
that only wrong labels are explained away. The network then fits what is left. At test time u and v are not used.

Source: Liu, Zhu, Qu, You, *Robust Training under Label Noise by Over-parameterization*, ICML 2022.

Two variants, both the authors': ``"code"`` (their released code: the squared head moves u too, and the squares are
clipped in the loss) and ``"paper"`` (Algorithm 1: cross entropy moves u, the squared head moves v, and both are
projected to [-1, 1] after each step, by :meth:`SparseOverparamLoss.project_`). Deviations: only the rows of a batch are
read and updated, O(batch x classes) a step instead of O(samples x classes); the paper's variant keeps the clip, which
does nothing on projected rows; a consistency term without a second view is an error, where the code leaves it out.
"""

from __future__ import annotations

import os
from collections.abc import Sized

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from torchstone._checks import check_float, check_int, check_one_of
from torchstone.noise._batch import all_gather_rows, check_batch, check_sample_index, upcast

__all__ = [
    "SparseOverparamLoss",
    "balance_term",
    "consistency_term",
    "corrected_probabilities",
    "cross_entropy_head",
    "noise_masses",
    "sparse_overparam_loss",
    "squared_head",
]

VARIANTS = ("code", "paper")


def noise_masses(
    u: Float[Tensor, "batch 1"], v: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """Mass that noise put on the given label, and mass it took from the others.

    U = clip(u^2 y, 0, 1) and V = clip(v^2 (1 - y), 0, 1) with the one-hot label y. The noise is s = U - V. A negative
    target (label unknown) has no U.
    """
    y = _one_hot(target, v)
    return u.square().clamp(max=1) * y, v.square().clamp(max=1) * (1 - y)


def corrected_probabilities(
    logits: Float[Tensor, "batch classes"],
    put: Float[Tensor, "batch classes"],
    taken: Float[Tensor, "batch classes"],
    *,
    eps: float = 1e-4,
) -> Float[Tensor, "batch classes"]:
    """What the network plus the noise predicts for the given label.

    q = max(softmax(z) + U - V, eps), divided by its sum, clipped to [eps, 1]. No gradient reaches V (``taken``).
    """
    q = (logits.softmax(1) + put - taken.detach()).clamp(min=eps)
    return (q / q.sum(1, keepdim=True)).clamp(eps, 1)


def cross_entropy_head(q: Float[Tensor, "batch classes"], target: Int64[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Mean of -log q at the given label: trains the network and u."""
    return -q.gather(1, target.unsqueeze(1)).log().mean()


def squared_head(
    logits: Float[Tensor, "batch classes"],
    put: Float[Tensor, "batch classes"],
    taken: Float[Tensor, "batch classes"],
    target: Int64[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Mean over the batch of ||h + U - V - y||^2, h the one-hot prediction: trains v (and u), never the network."""
    h, y = _one_hot(logits.argmax(1), put), _one_hot(target, put)
    return (h + put - taken - y).square().sum(1).mean()


def balance_term(q: Float[Tensor, "batch classes"], *, eps: float = 1e-4) -> Float[Tensor, ""]:
    """Cross entropy of the uniform distribution and the batch mean of q: against classes that die out."""
    return -q.mean(0).clamp(eps, 1).log().mean()


def consistency_term(
    logits: Float[Tensor, "batch classes"], logits_aug: Float[Tensor, "batch classes"]
) -> Float[Tensor, ""]:
    """Mean KL(softmax(z) || softmax(z')): the augmented view z' follows the plain view z, which gets no gradient."""
    return F.kl_div(logits_aug.log_softmax(1), logits.detach().log_softmax(1), reduction="batchmean", log_target=True)


def sparse_overparam_loss(
    logits: Float[Tensor, "batch classes"],
    target: Int64[Tensor, " batch"],
    u: Float[Tensor, "batch 1"],
    v: Float[Tensor, "batch classes"],
    logits_aug: Float[Tensor, "batch classes"] | None = None,
    *,
    eps: float = 1e-4,
    variant: str = "code",
    lambda_balance: float = 0.0,
    lambda_consistency: float = 0.0,
) -> Float[Tensor, ""]:
    r"""The loss of a batch, given its rows of u and v; :class:`SparseOverparamLoss` keeps them and checks the input.

    L = cross-entropy head + squared head + lambda_balance \* balance + lambda_consistency \* consistency. In
    ``variant="paper"`` the squared head does not move u.

    Shapes: ``logits``, ``v``, ``logits_aug`` (batch, classes); ``u`` (batch, 1); ``target`` (batch,); returns a scalar.
    Cost: O(batch x classes).
    Raises: ValueError on an unknown variant, or if the consistency term lacks ``logits_aug``.
    Source: Liu et al., ICML 2022, Algorithm 1; the last two terms make SOP+.

    Example:
        >>> zero = torch.zeros(1, 2)
        >>> sparse_overparam_loss(zero, torch.tensor([0]), zero[:, :1], zero)  # log 2 + 0: the tie goes to class 0
        tensor(0.6931)
    """
    check_one_of("variant", variant, VARIANTS)
    put, taken = noise_masses(u, v, target)
    q = corrected_probabilities(logits, put, taken, eps=eps)
    put_squared = put.detach() if variant == "paper" else put
    loss = cross_entropy_head(q, target) + squared_head(logits, put_squared, taken, target)
    if lambda_balance:
        loss = loss + lambda_balance * balance_term(q, eps=eps)
    if lambda_consistency:
        if logits_aug is None:
            raise ValueError(f"lambda_consistency is {lambda_consistency:g}: give logits_aug, those of a second view")
        loss = loss + lambda_consistency * consistency_term(logits, logits_aug)
    return loss


class SparseOverparamLoss(nn.Module):
    """SOP loss: keeps u and v of every training sample and updates only the rows of the batch.

    Train u and v by an optimiser of their own, plain SGD at constant rates::

        criterion = SparseOverparamLoss(len(dataset), num_classes, generator=generator)
        noise_optimizer = torch.optim.SGD(criterion.param_groups(*suggest_rates(batch_size, epochs)))
        for x, y, index in loader:                   # index: position in the data set, not in the batch
            loss = criterion(model(x), y, index)
            optimizer.zero_grad(), noise_optimizer.zero_grad()
            loss.backward()
            optimizer.step(), noise_optimizer.step()  # variant "paper": then criterion.project_(index)

    Gradients of u and v are row-sparse, so that a sample which is not in the batch keeps its bits. They are refused by
    Adam, which would destroy the implicit l1 penalty; leave them out of gradient clipping and momentum too.

    The same sample must always come with the same label. ``index`` and ``target`` on the CPU are checked for that and
    for their range; on an accelerator only the gather itself asserts the range, because reading values would stall
    every step. That ``logits`` are not probabilities cannot be checked. NaN logits give a NaN loss, as in torch's
    losses; an empty batch has loss 0.

    Afterwards :meth:`noise_score` ranks the samples by how likely their label is wrong. :meth:`noise` and
    :meth:`corrected_targets` return a number per sample and class: ask for some samples at a time where v is large.

    Several processes: a ``DistributedSampler`` deals the samples out anew each epoch, so all processes must hold the
    same rows. Build the loss with equal generators and call :meth:`synchronize_gradients` before the optimiser's step.

    Args:
        num_samples: Size N of the training set.
        num_classes: Number C of classes.
        eps: Lower clip of the corrected probabilities.
        init_std: Standard deviation of the normal start of u and v; at 0 they would never move.
        variant: ``"code"`` or ``"paper"``, see the module.
        lambda_balance: Weight of :func:`balance_term` (0.1 in SOP+); the mean is over the rank's own batch.
        lambda_consistency: Weight of :func:`consistency_term` (0.9 in SOP+); needs ``logits_aug``.
        dtype: How u and v are stored; the loss itself is computed in float32 or better. bfloat16 halves the memory;
            float16 too, but it cannot hold the default ``init_std``.
        file: Path of a new file to hold v, memory-mapped, for sets whose v exceeds the memory. u and v may stay on the
            CPU while the logits are on an accelerator.
        generator: Source of the start of u and v.
        device: Where u and v live.

    Shapes: ``logits``, ``logits_aug`` (batch, classes) float; ``target``, ``index`` (batch,) int64; returns a scalar.
    Cost: O(batch x classes) time a step; N (C + 1) numbers and N labels of memory.
    Raises: TypeError on a wrong dtype; ValueError on a wrong shape, an index or label out of range, a sample that
        changed its label, a missing second view, or a file that exists. Warns if a batch names a sample twice.
    Source: Liu, Zhu, Qu, You, *Robust Training under Label Noise by Over-parameterization*, ICML 2022.

    Example:
        >>> criterion = SparseOverparamLoss(4, 3, generator=torch.Generator().manual_seed(0))
        >>> criterion(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([3, 0]))  # log 3 + (0 + 2) / 2
        tensor(2.0986, grad_fn=<AddBackward0>)
    """

    labels: Tensor

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        eps: float = 1e-4,
        init_std: float = 1e-8,
        variant: str = "code",
        lambda_balance: float = 0.0,
        lambda_consistency: float = 0.0,
        dtype: torch.dtype = torch.float32,
        file: str | os.PathLike[str] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.num_samples = check_int("num_samples", num_samples, 1)
        self.num_classes = check_int("num_classes", num_classes, 2)
        self.eps = check_float("eps", eps, 0, 1 / num_classes, open_low=True)
        self.variant = check_one_of("variant", variant, VARIANTS)
        self.lambda_balance = check_float("lambda_balance", lambda_balance, 0)
        self.lambda_consistency = check_float("lambda_consistency", lambda_consistency, 0)
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating point, not {dtype}")
        # A start below the normal numbers of the dtype would be rounded to 0, and 0 never grows.
        check_float("init_std", init_std, torch.finfo(dtype).tiny, 1)

        u = torch.empty(num_samples, 1, dtype=dtype, device=device)
        if file is None:
            v = torch.empty(num_samples, num_classes, dtype=dtype, device=device)
        else:
            v = _new_mapped(file, num_samples, num_classes, dtype, u.device)
        self.u = nn.Parameter(u.normal_(0, init_std, generator=generator))
        self.v = nn.Parameter(v.normal_(0, init_std, generator=generator))
        self.register_buffer("labels", torch.full((num_samples,), -1, device=device))

    def forward(
        self,
        logits: Float[Tensor, "batch classes"],
        target: Int64[Tensor, " batch"],
        index: Int64[Tensor, " batch"],
        logits_aug: Float[Tensor, "batch classes"] | None = None,
    ) -> Float[Tensor, ""]:
        """Loss of a batch; while training it also notes the labels, for :meth:`noise` and :meth:`corrected_targets`."""
        check_batch(logits, target, self.num_classes)
        check_sample_index(index, len(logits), self.num_samples)
        if logits_aug is not None and logits_aug.shape != logits.shape:
            raise ValueError(
                f"logits_aug must have the shape of logits {tuple(logits.shape)}, but has {tuple(logits_aug.shape)}"
            )
        if not len(logits):
            return upcast(logits).sum()
        if self.training:
            self._note_labels(index.to(self.u.device), target.to(self.u.device))
        logits = upcast(logits)
        return sparse_overparam_loss(
            logits,
            target,
            self._rows(self.u, index, logits),
            self._rows(self.v, index, logits),
            None if logits_aug is None else upcast(logits_aug),
            eps=self.eps,
            variant=self.variant,
            lambda_balance=self.lambda_balance,
            lambda_consistency=self.lambda_consistency,
        )

    def param_groups(self, lr_u: float, lr_v: float) -> list[dict[str, object]]:
        """Parameter groups of u and v for ``torch.optim.SGD``, without momentum and weight decay.

        Give them to an SGD of their own, without a scheduler: then the rates stay constant, as the method wants. Added
        to the network's optimiser, they would follow its scheduler.
        """
        plain = {"momentum": 0.0, "weight_decay": 0.0}
        return [
            {"params": [self.u], "lr": check_float("lr_u", lr_u, 0), **plain},
            {"params": [self.v], "lr": check_float("lr_v", lr_v, 0), **plain},
        ]

    @torch.no_grad()
    def project_(self, index: Int64[Tensor, " batch"] | None = None) -> None:
        """Clip the rows ``index`` of u and v (all if ``None``) to [-1, 1]: after each step of ``variant="paper"``."""
        for parameter in (self.u, self.v):
            if index is None:
                parameter.clamp_(-1, 1)
            else:
                rows = index.to(parameter.device)
                parameter[rows] = parameter[rows].clamp(-1, 1)

    @torch.no_grad()
    def synchronize_gradients(self, group: torch.distributed.ProcessGroup | None = None) -> Int64[Tensor, " rows"]:
        """Replace the gradients of u and v by their mean over all processes; call between ``backward`` and ``step``.

        Every process then takes the same step on the rows that any of them visited, and knows their labels. The sum is
        divided by the number of processes, as DistributedDataParallel does for the network: with equal batches, the
        step of one process on all of them together. All processes must call it. Returns the rows touched (with
        repeats), for :meth:`project_`. Cost: O(all batches x classes), in time and traffic.
        """
        if self.u.grad is None or self.v.grad is None:
            index = torch.empty(0, dtype=torch.int64, device=self.u.device)
            rows = self.v.new_empty(0, 1 + self.num_classes)
        else:
            grad_u, grad_v = self.u.grad.coalesce(), self.v.grad.coalesce()
            index = grad_u.indices()[0]
            rows = torch.cat([grad_u.values(), grad_v.values()], 1)
        parts = all_gather_rows(rows, group)
        ids = torch.cat(all_gather_rows(torch.stack([index, self.labels[index]], 1), group))
        rows = torch.cat(parts) / len(parts)
        index, labels = ids.unbind(1)
        self.labels[index] = labels
        for parameter, columns in ((self.u, rows[:, :1]), (self.v, rows[:, 1:])):
            # torch adds a single sparse row by its stride: that of a slice would reach into the next row.
            values = columns.clone(memory_format=torch.contiguous_format)
            parameter.grad = torch.sparse_coo_tensor(
                index.unsqueeze(0), values, parameter.shape, check_invariants=False
            )
        return index

    @torch.no_grad()
    def noise(self, index: Int64[Tensor, " rows"] | None = None) -> Float[Tensor, "rows classes"]:
        """Estimated noise s = U - V of the samples ``index`` (all if ``None``); 0 for samples never visited."""
        rows = self._select(index)
        put, taken = noise_masses(upcast(self.u[rows]), upcast(self.v[rows]), self.labels[rows])
        return (put - taken) * (self.labels[rows] >= 0).unsqueeze(1)

    @torch.no_grad()
    def noise_score(self, index: Int64[Tensor, " rows"] | None = None) -> Float[Tensor, " rows"]:
        """U at the given label, in [0, 1]: the higher, the more likely the label is wrong."""
        return upcast(self.u[self._select(index)]).squeeze(1).square().clamp(max=1)

    @torch.no_grad()
    def corrected_targets(self, index: Int64[Tensor, " rows"] | None = None) -> Float[Tensor, "rows classes"]:
        """Estimated clean labels: max(y - s, 0), divided by its sum; uniform where nothing is left or was ever seen."""
        noise = self.noise(index)
        left = (_one_hot(self.labels[self._select(index)], noise) - noise).clamp(min=0)
        total = left.sum(1, keepdim=True)
        return torch.where(total > 0, left / total, 1 / self.num_classes)

    def check_dataset(self, dataset: Sized) -> None:
        """Raise ``ValueError`` unless ``dataset`` has as many samples as this loss."""
        if len(dataset) != self.num_samples:
            raise ValueError(f"num_samples is {self.num_samples}, but the data set has {len(dataset)} samples")

    def extra_repr(self) -> str:
        """Arguments, as ``print(module)`` shows them."""
        return f"{self.num_samples}, {self.num_classes}, eps={self.eps:g}, variant={self.variant!r}"

    def _rows(self, parameter: Tensor, index: Tensor, like: Tensor) -> Tensor:
        # The gradient of an embedding is row-sparse, which SGD applies to those rows alone.
        rows = F.embedding(index.to(parameter.device), parameter, sparse=True)
        return rows.to(like.device, like.dtype)

    def _select(self, index: Tensor | None) -> Tensor | slice:
        return slice(None) if index is None else index.to(self.u.device)

    @torch.no_grad()
    def _note_labels(self, index: Tensor, target: Tensor) -> None:
        if index.device.type == "cpu" and not torch.compiler.is_compiling():
            known = self.labels[index]
            changed = ((known >= 0) & (known != target)).nonzero()
            if len(changed):
                at = int(changed[0])
                raise ValueError(
                    f"sample {int(index[at])} came with label {int(known[at])} before and with {int(target[at])} now: "
                    "index must be the position in the data set (not in the batch), and labels must not change"
                )
        self.labels[index] = target


def _one_hot(target: Tensor, like: Tensor) -> Tensor:
    # Not F.one_hot, which refuses -1, the label of a sample never seen.
    return (target.unsqueeze(1) == torch.arange(like.shape[1], device=target.device)).to(like.dtype)


def _new_mapped(
    file: str | os.PathLike[str], rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    if device.type != "cpu":
        raise ValueError(f"file keeps v on the CPU, but device is {device}")
    try:
        open(file, "xb").close()
    except FileExistsError:
        raise ValueError(f"file {os.fspath(file)!r} exists: name a new one, and resume by load_state_dict") from None
    return torch.from_file(os.fspath(file), shared=True, size=rows * columns, dtype=dtype).view(rows, columns)

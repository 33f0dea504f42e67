r"""Whitening of data, and how much of what relates test samples to training samples it leaves.

A network whose first layer is dense and starts from rotation-invariant weights sees its inputs only through the
sample-sample second moments K = X X^T (rows are samples): turn inputs and first weights by the same rotation, and every
output stays what it was, throughout training. Whitening replaces K by the projector on the space that the samples of
the fit span. If training and test samples are whitened together and are linearly independent, K becomes the identity:
what training does to the first layer then does not reach the test samples at all.

Source: Wadia et al., *Whitening and Second Order Optimization Both Make Information in the Dataset Unusable During
Training, and Can Reduce or Prevent Generalization*, ICML 2021, sections 2 and 3.

Deviations: as in the paper, second moments are taken about zero, not about the mean, unless ``center`` says otherwise.
Ours: the result is rescaled to the mean squared norm of the data, because whitened samples are so short that learning
rates could not be compared; eigenvalues below a share ``eps`` of the largest count as zero. All is computed in float64:
in float32 small eigenvalues are noise, and dividing by them makes K anything but a projector.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone._checks import check_finite, check_float, check_one_of

__all__ = ["Whitening", "gram", "information_fraction", "spectrum"]

EPS = 1e-10
UNEVEN = 1e-5  # eigenvalues below this share of the largest are known to no more than eleven digits
BUFFERS = ("mean", "matrix", "inverse", "rank_")


def gram(x_train: Float[Tensor, "*s n d"], x_test: Float[Tensor, "*s m d"]) -> Float[Tensor, "*s n+m n+m"]:
    """Second moments K = X X^T between all samples X = [x_train; x_test], all that a rotation of the inputs leaves.

    Shapes: (n, d) and (m, d) give (n + m, n + m); a leading axis of both is kept. ``K[:n, n:]`` relates training to
        test samples.
    Cost: O((n + m)^2 d).
    Raises: TypeError or ValueError on wrong dtypes or shapes.
    Source: Wadia et al., ICML 2021, section 2.

    Example:
        >>> gram(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, -1.0]]))
        tensor([[5., 0.],
                [0., 5.]])
    """
    x = torch.cat(_pair(x_train, x_test), -2)
    return x @ x.mT


def information_fraction(
    x_train: Float[Tensor, "*s n d"], x_test: Float[Tensor, "*s m d"], transform: Callable[[Tensor], Tensor]
) -> Float[Tensor, "*s"]:
    r"""How much of the relation between training and test samples a transform leaves.

    kappa = ||X_train X_test^T||_F / (||X_train||_F ||X_test||_F) lies in [0, 1] and knows neither rotation nor scale;
    returned is kappa of the transformed data over kappa of the data. It is 1 for a rotation; at 0, training a dense
    first layer reaches no test sample. Data without structure, isotropic in r dimensions, have kappa near 1 / sqrt(r),
    so a transform of data that have little to lose may come out near 1, or above.

    Args:
        x_train: training inputs.
        x_test: test inputs.
        transform: a fitted :class:`Whitening`, or any function of inputs that returns (..., features).

    Shapes: (n, d) and (m, d) give a number; (s, n, d) and (s, m, d) give (s,).
    Cost: O((n + m) d min(d, n + m)).
    Raises: TypeError or ValueError on wrong dtypes or shapes, or where training and test inputs are orthogonal already.
    Source: Wadia et al., ICML 2021, section 2: the block of K by which training moves test samples.

    Example:
        >>> x = torch.randn(300, 20, generator=torch.Generator().manual_seed(0)) + 1
        >>> x_train, x_test = x[:100], x[100:]  # put your own here
        >>> whitening = Whitening(fit="train").fit(x_train)
        >>> print(f"{information_fraction(x_train, x_test, whitening):.2f}")
        0.42
    """
    raw = _relation(*_pair(x_train, x_test))
    if (raw == 0).any():
        raise ValueError("x_train and x_test must be related, but all their inner products are 0")
    return _relation(transform(x_train), transform(x_test)) / raw


def spectrum(moment: Float[Tensor, "*s d d"], *, eps: float = EPS) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (largest first), eigenvectors as columns, and which eigenvalues count: above eps times the largest.

    Shapes: (*s, d, d) symmetric gives (*s, d), (*s, d, d) and (*s, d) bool, in float64.
    Cost: O(d^3) each, all in one call.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    values, vectors = values.flip(-1), vectors.flip(-1)
    return values, vectors, values > (eps * values[..., :1]).clamp(min=0)


class Whitening(nn.Module):
    r"""Linear map after which the second moments of the data it was fitted on are those of white noise.

    F = X^T X = V Lambda V^T over the samples of the fit; x -> M (x - mean) with M = c V Lambda^{-1/2} V^T (``"zca"``:
    the whitened sample nearest to the sample) or M = c Lambda^{-1/2} V^T (``"pca"``: the same, turned into the axes of
    V). Eigenvalues up to ``eps`` times the largest count as zero, and their directions are dropped.

    It is an estimator (``fit``, ``transform``, ``inverse_transform``) and a module without parameters: a transform of a
    data set, or a frozen first layer. It saves, loads and moves like any module, and computes in the dtype of its
    buffers, float64; inputs keep theirs.

    Args:
        mode: ``"zca"`` or ``"pca"``.
        fit: what ``fit`` is given. ``"train"``: training inputs. ``"full"``: training and test inputs, to be whitened
            together. ``"distribution"``: a large sample of other inputs.
        eps: eigenvalues up to this share of the largest count as zero.
        center: subtract the mean of the fit, and whiten what is left.
        rescale: scale by c = sqrt(trace F / rank), so that the mean squared norm over the fit stays what it was (after
            centring); otherwise c = 1, and the second moments X^T X become a projector. Divide that by the square root
            of the number of samples for unit variance: scikit-learn's ``PCA(whiten=True)`` is ``"pca"`` with
            ``center=True``, times sqrt(n - 1).

    Attributes:
        mean: (*s, d), zeros unless ``center``.
        matrix: (*s, k, d); k = d for ``"zca"``, the largest rank for ``"pca"`` (rows past a smaller rank are zero).
        inverse: (*s, d, k), the pseudo-inverse of ``matrix``.
        rank_: (*s), number of eigenvalues that count.

    Shapes: ``fit`` takes (n, d), and (m, d) with ``"full"``; or (s, n, d) for s data sets, in one decomposition.
        ``forward`` takes (n, d) and returns (n, k), or (s, n, d) and (s, n, k).
    Cost: O(n d^2 + d^3) time and O(n d + d^2) memory to fit, O(n d k) to transform.
    Raises: TypeError or ValueError on wrong dtypes and shapes, NaN, or data that are all zero. Warns if training and
        test inputs that are whitened together are linearly independent: training cannot tell test samples apart.
    Source: Wadia et al., ICML 2021, section 3.

    Example:
        >>> whitening = Whitening("pca", rescale=False).fit(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        >>> whitening.transform(torch.tensor([[3.0, 0.0], [0.0, 8.0]])).abs()
        tensor([[0., 1.],
                [2., 0.]])
        >>> whitening.rank_
        tensor(2)
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor
    rank_: Tensor

    def __init__(
        self,
        mode: str = "zca",
        fit: str = "train",
        *,
        eps: float = EPS,
        center: bool = False,
        rescale: bool = True,
    ) -> None:
        super().__init__()
        self.mode = check_one_of("mode", mode, ("zca", "pca"))
        self.fit_on = check_one_of("fit", fit, ("train", "full", "distribution"))
        self.eps = check_float("eps", eps, 0, 1, open_high=True)
        self.center, self.rescale = center, rescale
        for name in BUFFERS:
            self.register_buffer(name, None)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "*s n d"], x_test: Float[Tensor, "*s m d"] | None = None) -> Whitening:
        """Fit on ``x``, with ``fit="full"`` on ``x`` and ``x_test`` together; return self."""
        if (self.fit_on == "full") != (x_test is not None):
            verb = "needs" if x_test is None else "takes no"
            raise ValueError(f"fit={self.fit_on!r} {verb} x_test: only 'full' whitens training and test data together")
        samples = _inputs("x", x) if x_test is None else torch.cat(_pair(x, x_test, "x"), -2)
        if 0 in samples.shape:
            raise ValueError(f"x must hold at least 1 sample of 1 feature, but has shape {tuple(samples.shape)}")
        samples = samples.double()
        size = torch.maximum(samples.amax((-2, -1)), -samples.amin((-2, -1)))
        if not size.isfinite().all():
            check_finite("x" if x_test is None else "x and x_test", samples)
        mean = samples.mean(-2) if self.center else torch.zeros_like(samples[..., 0, :])
        samples = samples - mean.unsqueeze(-2) if self.center else samples
        moment = samples.mT @ samples
        values, vectors, kept = spectrum(moment, eps=self.eps)
        noise = samples.shape[-2] * (torch.finfo(torch.float64).eps * size) ** 2
        if (values[..., 0] <= noise).any():
            raise ValueError(f"x has rank 0: all samples are {'equal' if self.center else 'zero'}")
        rank = kept.sum(-1)
        root = torch.where(kept, values.clamp(min=0).sqrt(), 0)
        outward = vectors * torch.where(kept, 1 / root, 0).unsqueeze(-2)
        inward = vectors * root.unsqueeze(-2)
        turn = vectors.mT if self.mode == "zca" else torch.eye(values.shape[-1], int(rank.max())).to(vectors)
        matrix, inverse = (outward @ turn).mT, inward @ turn
        uneven = (kept & (values < UNEVEN * values[..., :1])).any(-1)
        if uneven.any():
            # X^T X is rounded in units of its largest eigenvalue, X M is not: a Newton step towards the root repairs M.
            white = samples @ matrix.mT
            error = (white.mT @ white - matrix @ inverse) / 2 * uneven[..., None, None]
            matrix, inverse = matrix - error @ matrix, inverse + inverse @ error
        scale = (moment.diagonal(dim1=-2, dim2=-1).sum(-1) / rank).sqrt() if self.rescale else torch.ones_like(noise)
        self.matrix, self.inverse = matrix * scale[..., None, None], inverse / scale[..., None, None]
        self.mean, self.rank_ = mean, rank
        self._warn(samples.shape[-2])
        return self

    def _warn(self, samples: int) -> None:
        rank = int(self.rank_.max())
        if samples > rank + self.center:
            return
        if self.fit_on == "full":
            change = "all change alike" if self.center else "cannot change"
            warnings.warn(
                f"n + m = {samples} training and test samples are whitened together and have rank {rank}: in a first "
                f"layer, test pre-activations {change} in training, so that accuracy on them is that of chance",
                UserWarning,
                stacklevel=4,
            )
        elif self.fit_on == "distribution":
            warnings.warn(
                f"{samples} samples have rank {rank}: a sample of a distribution needs more samples than dimensions",
                UserWarning,
                stacklevel=4,
            )

    def transform(self, x: Float[Tensor, "*s n d"]) -> Float[Tensor, "*s n k"]:
        """Whiten: M (x - mean), in the dtype of ``x``."""
        self._check(x, self.mean, "features of the fit")
        samples = x.to(self.matrix.dtype)
        if self.center:
            samples = samples - self.mean.unsqueeze(-2)
        return (samples @ self.matrix.mT).to(x.dtype)

    def inverse_transform(self, z: Float[Tensor, "*s n k"]) -> Float[Tensor, "*s n d"]:
        """Undo :meth:`transform`, but for what lay in dropped directions."""
        self._check(z, self.inverse[..., 0, :] if self._fitted else self.inverse, "whitened features")
        return (z.to(self.inverse.dtype) @ self.inverse.mT + self.mean.unsqueeze(-2)).to(z.dtype)

    def forward(self, x: Float[Tensor, "*s n d"]) -> Float[Tensor, "*s n k"]:
        """The same as :meth:`transform`."""
        return self.transform(x)

    def extra_repr(self) -> str:
        """Arguments."""
        return f"{self.mode!r}, fit={self.fit_on!r}, eps={self.eps:g}, center={self.center}, rescale={self.rescale}"

    @property
    def _fitted(self) -> bool:
        return isinstance(self.matrix, Tensor)

    def _check(self, x: Tensor, like: Tensor, what: str) -> None:
        if not self._fitted:
            raise RuntimeError("this whitening has no matrix yet: call fit, or load a state")
        _inputs("x", x)
        if x.ndim != like.ndim + 1 or x.shape[:-2] != like.shape[:-1] or x.shape[-1] != like.shape[-1]:
            shape = ", ".join(map(str, (*like.shape[:-1], "n", like.shape[-1])))
            raise ValueError(f"x must have shape ({shape}), with the {what}, but has {tuple(x.shape)}")

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Make buffers of the saved sizes, so that a state loads before any fit."""
        for name in BUFFERS:
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if saved is not None and (own is None or own.shape != saved.shape):
                device = saved.device if own is None else own.device
                setattr(self, name, torch.empty_like(saved, device=device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _inputs(name: str, x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = f"dtype {x.dtype}" if isinstance(x, Tensor) else f"type {type(x).__name__}"
        raise TypeError(f"{name} must be a floating point tensor, but has {kind}")
    if x.ndim not in (2, 3):
        raise ValueError(f"{name} must have shape (n, d) or (s, n, d), but has {tuple(x.shape)}")
    return x


def _pair(x_train: Tensor, x_test: Tensor, name: str = "x_train") -> tuple[Tensor, Tensor]:
    _inputs(name, x_train)
    _inputs("x_test", x_test)
    if x_train.ndim != x_test.ndim or x_train.shape[:-2] != x_test.shape[:-2] or x_train.shape[-1] != x_test.shape[-1]:
        raise ValueError(
            f"{name} and x_test must agree but for the number of samples, but have shapes {tuple(x_train.shape)} and "
            f"{tuple(x_test.shape)}"
        )
    return x_train, x_test


def _relation(x: Tensor, y: Tensor) -> Tensor:
    """The kappa of :func:`information_fraction`."""
    x, y = x.double(), y.double()
    if x.shape[-1] < x.shape[-2] + y.shape[-2]:  # ||X Y^T||^2 = trace (X^T X) (Y^T Y)
        cross = ((x.mT @ x) * (y.mT @ y)).sum((-2, -1)).clamp(min=0).sqrt()
    else:
        cross = (x @ y.mT).norm(dim=(-2, -1))
    return cross / (x.norm(dim=(-2, -1)) * y.norm(dim=(-2, -1)))

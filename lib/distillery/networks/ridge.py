r"""Kernels and the ridge regression on them: the infinitely wide network in closed form, and features of random networks.

Sources: the neural tangent kernel of KIP (arXiv 2011.00050), the random features of RFAD (2210.12067), Platt's scale of its loss; the
ridge regression with a ridge for each point is ours, by the primal problem with weights.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from distillery.checks import InputError, RunFailed
from distillery.networks.convnet import ConvNet, Params
from distillery.networks.precision import networks_at_once
from distillery.upload import to_device

NEAR = 1 - 8 * torch.finfo(torch.float64).eps  # a cosine above is 1 but for rounding


def ntk(x: Tensor, y: Tensor | None = None, depth: int = 1, weight: float = 2**0.5, bias: float = 0.1) -> Tensor:
    r"""Neural tangent kernel of an infinitely wide fully connected ReLU network in the NTK parameterization, (n, m).

    $q_0 = W^2 x \cdot x' / d + b^2$, $\theta_0 = q_0$; a layer turns them, with $\cos a = q / \sqrt{q(x,x)\,q(x',x')}$, into
    $q \leftarrow W^2 \sqrt{q(x,x)\,q(x',x')}\,(\sin a + (\pi - a)\cos a) / 2\pi + b^2$ and $\theta \leftarrow q + W^2\,\theta\,(\pi - a) / 2\pi$.

    At an angle of 0 the kernel has a kink: there values are exact, and so are gradients of a point with itself; of two points that
    happen to be equal they are the symmetric subgradient. Source: KIP. Slow reference: `ntk_plain`.

    x, y          (n, d) and (m, d) float64; None = x with itself
    depth         hidden layers
    weight, bias  W and b, the standard deviations (published: sqrt 2 and .1)
    """
    same, y = y is None, x if y is None else y
    w2, b2, d = weight**2, bias**2, x.shape[1]
    own = [w2 * rows.square().sum(1) / d + b2 for rows in (x, y)]
    theta = q = w2 * (x @ y.T) / d + b2
    for _ in range(depth):
        scale = (own[0][:, None] * own[1]).sqrt()
        cosine = q / scale
        near = cosine > NEAR
        if same:
            near |= torch.eye(len(x), dtype=torch.bool, device=x.device)
        cosine = torch.where(near, 0, cosine.clamp(min=-NEAR))
        left = math.pi - cosine.arccos()
        k0 = torch.where(near, 0.5, left / (2 * math.pi))
        k1 = scale * ((1 - cosine.square()).sqrt() + left * cosine) / (2 * math.pi)
        q = w2 * torch.where(near, q / 2, k1) + b2
        theta = q + w2 * theta * k0
        own = [w2 * value / 2 + b2 for value in own]
    return theta


def ntk_plain(x: Tensor, y: Tensor, depth: int = 1, weight: float = 2**0.5, bias: float = 0.1) -> Tensor:
    """`ntk` for one pair of inputs (d,) float64, layer by layer: q is the covariance of the pre-activations (NNGP kernel), theta the NTK.

    depth  hidden layers, >= 0; the read-out comes on top. 0 is the linear kernel
    bias   above 0, so that no q is zero and no angle reaches pi
    """
    (d,) = x.shape
    q_xx = weight**2 * torch.dot(x, x) / d + bias**2
    q_yy = weight**2 * torch.dot(y, y) / d + bias**2
    q_xy = weight**2 * torch.dot(x, y) / d + bias**2
    theta = q_xy
    for _ in range(depth):
        norm = torch.sqrt(q_xx * q_yy)
        cosine = q_xy / norm
        # Within a few roundings of 1 the angle is noise (at most 6e-8) and its derivative is noise / noise.
        if cosine > 1 - 8 * torch.finfo(cosine.dtype).eps:
            kappa1, kappa0 = q_xy / 2, 0.5
        else:
            a = torch.arccos(cosine)
            kappa1 = norm * (torch.sin(a) + (math.pi - a) * cosine) / (2 * math.pi)
            kappa0 = (math.pi - a) / (2 * math.pi)
        q_xy = weight**2 * kappa1 + bias**2
        # kappa1 of a point with itself (a = 0) is q / 2.
        q_xx = weight**2 * q_xx / 2 + bias**2
        q_yy = weight**2 * q_yy / 2 + bias**2
        theta = q_xy + weight**2 * theta * kappa0
    return theta


def regress(k_ss: Tensor, labels: Tensor, penalty: Tensor | float) -> Tensor:
    """The dual weights (K_SS + diag(penalty))^-1 labels, (m, C) float64. Waits for the device, to know whether the solve held.

    k_ss     (m, m) float64
    penalty  () or (m,): a ridge for each point, lambda / w for points of weight w
    raises   InputError where the penalty is not above 0; RunFailed with the conditioning where the matrix has no Cholesky factor
    Slow reference: `kernel_ridge_plain`.
    """
    if not isinstance(penalty, Tensor) and not penalty > 0:
        raise InputError(f"penalty: {penalty} is not accepted; accepted: a ridge above 0")
    ridge = torch.diag_embed(torch.as_tensor(penalty, dtype=k_ss.dtype, device=k_ss.device).expand(len(k_ss)))
    return torch.cholesky_solve(labels, factor(k_ss + ridge, "K_SS + ridge"))


def kernel_ridge_plain(kernel_ss: Tensor, labels: Tensor, kernel_ts: Tensor, penalty: Tensor | float) -> Tensor:
    """Predictions of kernel ridge regression, K_TS (K_SS + penalty I)^-1 Y_S, (n, C) float64.

    kernel_ss, labels  (m, m) and (m, C) float64: kernel of the support points with themselves, and their labels
    kernel_ts          (n, m) float64: kernel of the targets with the support points
    penalty            () > 0: the ridge, already scaled
    """
    identity = torch.eye(len(kernel_ss), dtype=kernel_ss.dtype, device=kernel_ss.device)
    return kernel_ts @ torch.linalg.inv(kernel_ss + penalty * identity) @ labels  # (n, C)


def platt(outputs: Tensor, targets: Tensor) -> float:
    """The factor that makes softmax(factor * outputs) the least wrong about targets (n,), by their cross-entropy.

    outputs  (n, C) of a regression, whose scale says nothing of probabilities
    """
    from scipy.optimize import minimize_scalar  # a second to import

    def wrong(k: float) -> float:
        return float(F.cross_entropy(math.exp(k) * outputs.double(), targets))

    return math.exp(minimize_scalar(wrong, bounds=(-5, 10), method="bounded").x)


def gaussian(network: ConvNet, generator: Generator, k: int, device: torch.device) -> Params:
    """k networks with weights N(0, 2 / fan in) and biases N(0, .1^2), as RFAD draws them."""
    params = {}
    for name, value in network.init(generator, k).items():
        spread = math.sqrt(2 / value[0, 0].numel()) if name.endswith("weight") else 0.1
        params[name] = torch.randn(value.shape, generator=generator) * spread
    return to_device(params, device)


def embeddings(network, params: Params, images: Tensor) -> Tensor:
    """Features of images (n, C, H, W) under all K networks side by side, (n, K * F)."""
    k = len(next(iter(params.values())))
    size = networks_at_once(k, len(images), images.shape, images.device)
    chunks = [{name: value[i : i + size] for name, value in params.items()} for i in range(0, k, size)]
    return torch.cat([network.embed(one, images, train=False) for one in chunks]).transpose(0, 1).flatten(1)


def factor(matrix: Tensor, name: str) -> Tensor:
    """The lower Cholesky factor of a symmetric matrix. Raises RunFailed with its conditioning where there is none."""
    lower, info = torch.linalg.cholesky_ex(matrix)
    if int(info) or not bool(lower.diagonal().isfinite().all()):
        if not bool(matrix.isfinite().all()):
            raise RunFailed(f"{name}: values that are not finite; accepted: finite numbers")
        low, high = torch.linalg.eigvalsh(matrix.detach())[[0, -1]].tolist()
        condition = f"condition {high / low:.1e}" if low > 0 else "not positive"
        raise RunFailed(
            f"{name}: no Cholesky factor of {len(matrix)} rows, eigenvalues from {low:.2e} to {high:.2e} ({condition}); "
            "accepted: a positive definite matrix, such as by a larger ridge"
        )
    return lower

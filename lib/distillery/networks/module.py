"""Any PyTorch module as a network of stacked weights."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from distillery.checks import InputError
from distillery.networks.convnet import Output, Params, trainable


def vmap_pays(k: int, images: tuple[int, ...], convolutional: bool, device: torch.device) -> bool:
    """Whether K modules run stacked by `torch.func.vmap` or one by one: by shapes (..., B, C, H, W) and device type alone.

    A module with convolutions is stacked on a CPU while B * H * W < 16384: beyond, the copies around a grouped convolution cost more
    than the calls they save (measured for the pool, forward and backward of 5 networks: all turn within a factor of two of this
    place, an MLP never). On a GPU always.
    """
    b, _, h, w = images[-4:]
    return k > 1 and (device.type != "cpu" or not convolutional or b * h * w < 16384)


class ModuleNetwork:
    """Any `nn.Module` behind the same interface, its K networks one by one or stacked by `torch.func.vmap`.

    build  makes a freshly initialized module; its last `nn.Linear` is the classifier, whose input is the embedding
    vmap   True or False; None = by `vmap_pays`. Modules with buffers (BatchNorm) or dropout always run one by one
    raises InputError if the module has no linear layer, or `vmap` is True where it must run one by one
    """

    def __init__(self, build: Callable[[], nn.Module], name: str = "module", vmap: bool | None = None):
        self.build, self.name, self.channels = build, name, 128
        with torch.device("meta"):
            self.skeleton = build()
        modules = list(self.skeleton.modules())
        linear = [module for module in modules if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError(f"network: {name} has no nn.Linear; accepted: a module that ends in a linear classifier")
        self.head, self.classes = linear[-1], linear[-1].out_features
        # statistics are updated in place and dropout draws from torch's global state: neither can be stacked
        random = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in modules)
        self.stackable = not random and not list(self.skeleton.buffers())
        self.convolutional = any(isinstance(module, nn.modules.conv._ConvNd) for module in modules)
        if vmap and not self.stackable:
            raise InputError(f"vmap: True with buffers or dropout in {name}; accepted: False or None")
        self.vmap = vmap

    def spec(self) -> dict:
        weights = {name: list(value.shape) for name, value in self.skeleton.state_dict().items()}
        return {"network": self.name, "classes": self.classes, "weights": weights}

    def init(self, generator: Generator, k: int = 1) -> Params:
        """k networks initialized as their modules do it; torch's global state is left as it was."""
        states = []
        for _ in range(k):
            with torch.random.fork_rng(devices=[]):
                torch.random.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                states.append({name: value.detach() for name, value in self.build().state_dict().items()})
        return {name: torch.stack([state[name] for state in states]) for name in states[0]}

    def apply(self, params: Params, images: Tensor, train: bool = True) -> Output:
        """images (K, B, C, H, W), or (B, C, H, W) seen by all K networks. Slow reference of vmap: `_one_by_one`."""
        self.skeleton.train(train)
        k, shared = len(next(iter(params.values()))), images.ndim == 4
        pays = self.stackable and vmap_pays(k, images.shape, self.convolutional, images.device)
        stacked = pays if self.vmap is None else self.vmap
        if stacked:
            logits, embedding = torch.func.vmap(self._forward, (0, None if shared else 0))(params, images)
            return Output(logits, embedding, {})
        return self._one_by_one(params, images, train)

    def _one_by_one(self, params: Params, images: Tensor, train: bool) -> Output:
        learned, found = trainable(params), []
        for i in range(len(next(iter(params.values())))):
            own = {name: value[i].clone() for name, value in params.items() if name not in learned}
            one = {name: value[i] for name, value in params.items()} | own
            found.append((*self._forward(one, images if images.ndim == 4 else images[i]), own))
        logits, embeddings, buffers = zip(*found, strict=True)
        changed = {name: torch.stack([each[name] for each in buffers]) for name in buffers[0]} if train else {}
        return Output(torch.stack(logits), torch.stack(embeddings), changed)

    def _forward(self, one: Params, images: Tensor) -> tuple[Tensor, Tensor]:
        """One network: (B, C, H, W) -> logits (B, classes) and embedding (B, F)."""
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = torch.func.functional_call(self.skeleton, one, images)
        finally:
            hook.remove()
        return logits, seen[0].flatten(1)

    def embed(self, params: Params, images: Tensor, train: bool = True) -> Tensor:
        return self.apply(params, images, train).embedding

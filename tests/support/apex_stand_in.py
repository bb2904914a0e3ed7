"""Packages named apex: one with the interface of NVIDIA's and none of its kernels, and others.

What passes with it is our way of using apex, not apex.
"""

from __future__ import annotations

from pathlib import Path

OPTIMIZERS = """
import torch
class FusedAdam(torch.optim.Optimizer):  # it counts steps by group, outside of the state
    def __init__(self, params, lr, betas, eps, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (one, two), count = group["betas"], group["step"]
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - one)
                state["exp_avg_sq"].lerp_(p.grad.square(), 1 - two)
                root = (state["exp_avg_sq"] / (1 - two**count)).sqrt() + group["eps"]
                update = state["exp_avg"] / (1 - one**count) / root + group["weight_decay"] * p
                p -= group["lr"] * update
"""
NORMALIZATION = """
import torch
num_calls = 0
def fused_rms_norm_affine(input, weight, normalized_shape, eps=1e-6, memory_efficient=False):
    global num_calls
    num_calls += 1
    assert tuple(weight.shape) == tuple(normalized_shape) and weight.dtype == input.dtype
    mean = input.double().square().mean(-1, keepdim=True)
    return (input.double() / (mean + eps).sqrt() * weight.double()).to(input.dtype)
"""
NOT_COMPILED = """
class Fused{}:
    def __init__(self, *args, **options):
        raise RuntimeError("no kernels: it was installed without its extensions")
"""
KINDS = ("none", "stranger", "not-compiled", "nvidia")


def write_apex(folder: Path, kind: str) -> None:
    """Put a package named apex, or none, into the folder."""
    package = folder / "apex"
    if kind == "none":
        return
    package.mkdir()
    if kind == "stranger":
        (package / "__init__.py").write_text("raise RuntimeError('apex needs a web framework')")
        return
    adam, norm = OPTIMIZERS, "class FusedRMSNorm:\n    def __init__(self, shape): pass\n"
    if kind == "not-compiled":
        adam, norm = NOT_COMPILED.format("Adam"), NOT_COMPILED.format("RMSNorm")
    for name, text in (("optimizers", adam), ("normalization", norm)):
        (package / name).mkdir()
        (package / name / "__init__.py").write_text(text)
    (package / "__init__.py").write_text("")
    (package / "normalization" / "fused_layer_norm.py").write_text(NORMALIZATION)

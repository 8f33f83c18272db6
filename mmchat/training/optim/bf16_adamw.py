"""AdamW for weights that are kept in bf16, with stochastic rounding.

A step of 1e-5 of a weight is far below half a unit of bf16's last place (2^-9 of the weight), so rounding to the
nearest would drop it. Rounded up with the probability of what is cut off, updates are right in the mean (Zamirai et al.
2020, arXiv:2010.06192).
"""

from typing import Any

import torch

FRACTION = 16
"""Bits that bf16 lacks of fp32."""


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """`values` as bf16: up or down to a neighbour, each with a probability that makes the mean equal to the value.

    Args:
        values: float32, finite.

    Returns:
        bfloat16, of the same shape.
    """
    noise = torch.randint(0, 1 << FRACTION, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    # Sign and magnitude: adding to the bits increases the magnitude, also of negative numbers.
    bits = (values.contiguous().view(torch.int32) + noise) & -(1 << FRACTION)
    return bits.view(torch.float32).to(torch.bfloat16)


class BF16AdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) whose weights and moments are bf16; the arithmetic is fp32, a tensor at a time.

    The random numbers follow from seed, step and the place of a parameter, so a resumed run draws the same, and all
    ranks do.
    """

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            raise ValueError("BF16AdamW takes no closure")
        place = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group, place)
                place += 1

    def _step(self, parameter: torch.Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        first, second = group["betas"]
        gradient = parameter.grad.float()
        mean = state["exp_avg"].float().lerp_(gradient, 1 - first)
        square = state["exp_avg_sq"].float().mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (square / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        weight = parameter.float().mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(mean, root, value=-group["lr"] / (1 - first ** state["step"]))
        generator = torch.Generator(parameter.device).manual_seed(_seed(self.seed, state["step"], place))
        for kept, exact in ((parameter, weight), (state["exp_avg"], mean), (state["exp_avg_sq"], square)):
            kept.copy_(round_stochastically(exact, generator))


def _seed(seed: int, step: int, place: int) -> int:
    """Different for every seed below 2^20, step below 2^24 and place below 2^18."""
    return ((seed % (1 << 20)) << 42) + ((step % (1 << 24)) << 18) + place % (1 << 18)

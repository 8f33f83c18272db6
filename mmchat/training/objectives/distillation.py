"""Knowledge distillation: a student learns what a teacher answers, wrong answers included.

Hinton et al. 2015 (arXiv:1503.02531), section 2.
"""

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened answers, summed over images: logits float[B, C] each -> scalar.

    Multiplied by the temperature's square, with which gradients of all temperatures are of like size.
    """
    targets = F.softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.cross_entropy(student.float() / temperature, targets, reduction="sum")

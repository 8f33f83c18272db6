"""Knowledge distillation (Hinton et al. 2015, arXiv:1503.02531, section 2): a student learns a teacher's answers."""

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened answers, summed over images.

    It is multiplied by the square of the temperature, so that gradients have a similar size at all temperatures.

    Args:
        student, teacher: logits float[B, C].
    """
    targets = F.softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * F.cross_entropy(student.float() / temperature, targets, reduction="sum")

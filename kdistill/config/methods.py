"""The catalogue of methods: what each computes, who published it, what it needs, when to use it.

`kdistill explain` and the tables in docs/ are made of it. Tests keep it equal to the options of the groups
`loss` and `feature`, and its facts to the code. This module imports neither Hydra nor torch.
"""

from __future__ import annotations

from kdistill.config.method import Family, Method
from kdistill.config.methods_on_features import ON_FEATURES
from kdistill.config.methods_on_logits import CONTROLS, HINTON, ON_LOGITS

TEACHING = (
    Method(
        "ensemble",
        "Several teachers",
        "teaching",
        "p_t: the weighted mean of the teachers' probabilities at T, or softmax of the mean of their logits",
        HINTON,
        ("the logits of each member: losses on features need one network",),
        "several good teachers are there, or one is trained with several seeds",
        ("teacher=ensemble", "teacher=ensemble teacher.params.average=logits"),
    ),
    Method(
        "assistant",
        "Teacher assistant",
        "teaching",
        "teacher -> assistant -> student, each step with the same loss",
        'S. I. Mirzadeh, M. Farajtabar, A. Li, N. Levine, A. Matsukawa, H. Ghasemzadeh, 2020, "Improved Knowledge'
        ' Distillation via Teacher Assistant", AAAI, arXiv 1902.03393',
        ("time for one more network",),
        "the teacher is much larger than the student",
        ("assistant=resnet14", "assistant=resnet14 assistant.epochs=40"),
    ),
    Method(
        "generations",
        "Born-again networks",
        "teaching",
        "teacher -> student 1 -> student 2 -> ..., each of the same architecture and with a seed of its own",
        'T. Furlanello, Z. C. Lipton, M. Tschannen, L. Itti, A. Anandkumar, 2018, "Born Again Neural Networks", ICML,'
        " arXiv 1805.04770",
        ("time for each generation",),
        "teacher and student are equally large, and time is no matter",
        ("generations=3", "teacher=resnet8 student=resnet8 generations=3"),
    ),
    Method(
        "mixup",
        "Mixup",
        "teaching",
        "images and labels lam a + (1 - lam) b, lam ~ Beta(concentration, concentration), one lam for a batch",
        'H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, 2018, "mixup: Beyond Empirical Risk Minimization", ICLR,'
        " arXiv 1710.09412",
        ("a loss that needs no labels for its soft part", "no unlabelled images"),
        "long training: the teacher answers new images for ever",
        ("mixing=mixup", "mixing=mixup mixing.concentration=1"),
    ),
    Method(
        "cutmix",
        "CutMix",
        "teaching",
        "a rectangle of b is put into image a; labels by area, one rectangle for a batch",
        'S. Yun, D. Han, S. J. Oh, S. Chun, J. Choe, Y. Yoo, 2019, "CutMix: Regularization Strategy to Train Strong'
        ' Classifiers with Localizable Features", ICCV, arXiv 1905.04899',
        ("a loss that needs no labels for its soft part", "no unlabelled images"),
        "as mixup, where blended images look too unlike real ones",
        ("mixing=cutmix", "mixing=cutmix soft_targets=live"),
    ),
)

METHODS: dict[str, Method] = {
    method.kind: method for method in (*ON_LOGITS, *ON_FEATURES, *CONTROLS, *TEACHING)
}


def of_family(family: Family) -> list[Method]:
    return [method for method in METHODS.values() if method.family == family]

"""The catalogue's losses on logits, and the controls."""

from __future__ import annotations

from kdistill.config.method import BATCH, LABELS, NO_TEACHER, Method

HINTON = (
    'G. Hinton, O. Vinyals, J. Dean, 2015, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531'
)
_TTM = 'K. Zheng, E. Yang, 2024, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR, arXiv 2402.11148'

ON_LOGITS = (
    Method(
        "kd",
        "Knowledge distillation",
        "logits",
        "T^2 KL(p_t || p_s), mean over samples\n"
        "multi-label: T^2 KL of each class's yes or no (sigmoids at T), mean over samples and classes\n"
        "regression: (z_s - z_t)^2, mean",
        HINTON,
        ("logits",),
        "the baseline that every other method has to beat",
        ("loss=kd", "loss=kd loss.T=2 loss.alpha=0.5"),
    ),
    Method(
        "lskd",
        "KD on standardised logits",
        "logits",
        "kd on (z - mean) / (std + 1e-7) of each sample, std with K - 1",
        'S. Sun, W. Ren, J. Li, R. Wang, X. Cao, 2024, "Logit Standardization in Knowledge Distillation", CVPR,'
        " arXiv 2403.01427",
        ("logits", "K >= 3: two z-scores are only a sign"),
        "teacher and student differ in the size of their logits; loss.standardise=true does it to kd and dkd",
        ("loss=lskd", "loss=dkd loss.standardise=true"),
    ),
    Method(
        "reverse_kl",
        "Reverse KL",
        "logits",
        "T^2 KL(p_s || p_t), mean over samples",
        'Y. Gu, L. Dong, F. Wei, M. Huang, 2024, "MiniLLM: Knowledge Distillation of Large Language Models", ICLR,'
        " arXiv 2306.08543",
        ("logits",),
        "the student is too small for all of the teacher's modes",
        ("loss=reverse_kl", "loss=reverse_kl loss.T=2"),
    ),
    Method(
        "js",
        "Jensen-Shannon divergence",
        "logits",
        "T^2 (KL(p_t || m) + KL(p_s || m)) / 2 with m = (p_t + p_s) / 2, mean over samples",
        'J. Lin, 1991, "Divergence Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory',
        ("logits",),
        "the teacher is noisy or often wrong: the divergence is bounded",
        ("loss=js", "loss=js loss.T=2 loss.beta=2"),
    ),
    Method(
        "soft_ce",
        "Soft cross entropy",
        "logits",
        "-T^2 sum over classes of p_t log p_s, mean over samples",
        HINTON,
        ("logits",),
        "to compare with code that logs this value; its gradient is that of kd",
        ("loss=soft_ce", "loss=soft_ce loss.T=2"),
    ),
    Method(
        "logit_mse",
        "Squared error of logits",
        "logits",
        "sum over classes of (centred z_s - centred z_t)^2 / (2 K), mean over samples",
        'J. Ba, R. Caruana, 2014, "Do Deep Nets Really Need to be Deep?", NeurIPS, arXiv 1312.6184; '
        'T. Kim, J. Oh, N. Kim, S. Cho, S. Yun, 2021, "Comparing Kullback-Leibler Divergence and Mean Squared Error'
        ' Loss in Knowledge Distillation", IJCAI, arXiv 2105.08919',
        ("logits",),
        "no T to tune: it is the limit of kd for large T",
        ("loss=logit_mse", "loss=logit_mse loss.beta=0.1 loss.alpha=1"),
    ),
    Method(
        "hard_label",
        "Hard-label distillation",
        "logits",
        "cross entropy of the student with the teacher's decision, argmax z_t",
        'H. Touvron, M. Cord, M. Douze, F. Massa, A. Sablayrolles, H. Jegou, 2021, "Training data-efficient image'
        ' transformers & distillation through attention", ICML, arXiv 2012.12877',
        ("logits, of which only the largest counts",),
        "transformers, strong augmentation, unlabelled images",
        ("loss=hard_label", "loss=hard_label loss.alpha=0 loss.beta=1"),
    ),
    Method(
        "dkd",
        "Decoupled KD",
        "logits",
        "T^2 (tckd_weight TCKD + nckd_weight NCKD): KL of (label, rest), and KL among the other classes",
        'B. Zhao, Q. Cui, R. Song, Y. Qiu, J. Liang, 2022, "Decoupled Knowledge Distillation", CVPR, arXiv 2203.08679',
        ("logits", LABELS, "a warm-up: beta is a ramp"),
        "the teacher is confident, and what it knows of the other classes would go under in kd",
        ("loss=dkd", "loss=dkd loss.nckd_weight=2"),
    ),
    Method(
        "nkd",
        "Normalised KD",
        "logits",
        "-p_t[y] log p_s[y] at T = 1, - non_target_weight T^2 sum over the others of N(p_t) log N(p_s), N:"
        " normalised without the label",
        'Z. Yang, A. Zeng, Z. Li, T. Zhang, C. Yuan, Y. Li, 2023, "From Knowledge Distillation to Self-Knowledge'
        ' Distillation: A Unified Approach with Normalized Loss and Customized Soft Labels", ICCV, arXiv 2303.13005',
        ("logits", LABELS),
        "training in the manner of ImageNet (there T=1, non_target_weight=1.5)",
        ("loss=nkd", "loss=nkd loss.T=1 loss.non_target_weight=1.5"),
    ),
    Method(
        "dist",
        "DIST, distillation by correlation",
        "logits",
        "T^2 (inter_weight (1 - rho of each sample's probabilities) + intra_weight (1 - rho of each class's))",
        'T. Huang, S. You, F. Wang, C. Qian, C. Xu, 2022, "Knowledge Distillation from A Stronger Teacher", NeurIPS,'
        " arXiv 2205.10536",
        ("logits", BATCH, "K >= 3", "optim.accumulate=1: parts of a batch give another loss"),
        "the teacher is much stronger than the student",
        ("loss=dist", "loss=dist loss.T=1"),
    ),
    Method(
        "mlkd",
        "Multi-level logit distillation",
        "logits",
        "mean over T of: kd + |P_s P_s' - P_t P_t'|^2 / N + |P_s' P_s - P_t' P_t|^2 / K, P: probabilities [N, K]",
        'Y. Jin, J. Wang, D. Lin, 2023, "Multi-Level Logit Distillation", CVPR',
        ("logits", BATCH, "a fixed batch size: published weights belong to 64"),
        "relations between samples and classes from logits alone",
        ("loss=mlkd", "loss=mlkd student.batch_size=64"),
    ),
    Method(
        "ttm",
        "Transformed teacher matching",
        "logits",
        "KL(softmax(power z_t) || softmax(z_s)), mean over samples: only the teacher is softened, no T^2",
        _TTM,
        ("logits",),
        "the student of kd is overconfident",
        ("loss=ttm", "loss=ttm loss.power=0.25 loss.beta=4"),
    ),
    Method(
        "wttm",
        "Weighted TTM",
        "logits",
        "ttm with each sample weighted by sum over classes of p_t^power",
        _TTM,
        ("logits",),
        "as ttm, and samples that the teacher is unsure of are to count more",
        ("loss=wttm", "loss=wttm loss.power=0.5"),
    ),
    Method(
        "ofa",
        "OFA-KD's loss on logits",
        "logits",
        "-sum over classes of ((p_t + 1_y)^power - 1_y) log p_s, 1_y: 1 for the label; its heads on features are"
        " not part of it",
        'Z. Hao, J. Guo, K. Han, Y. Tang, H. Hu, Y. Wang, C. Xu, 2023, "One-for-All: Bridge the Gap Between'
        ' Heterogeneous Architectures in Knowledge Distillation", NeurIPS, arXiv 2310.19444',
        ("logits", LABELS),
        "the teacher is of another architecture, such as a ViT for a CNN",
        ("loss=ofa", "loss=ofa loss.power=1.5"),
    ),
    Method(
        "dml",
        "Deep mutual learning",
        "logits",
        "sum over two students of alpha CE(student, labels) + beta T^2 KL(other || student)",
        'Y. Zhang, T. Xiang, T. Hospedales, H. Lu, 2018, "Deep Mutual Learning", CVPR, arXiv 1706.00384',
        (NO_TEACHER, "twice the time: a second student, of another seed, learns beside"),
        "there is no teacher; the first student is kept",
        ("loss=dml", "loss=dml loss.T=2 loss.beta=2"),
    ),
)

CONTROLS = (
    Method(
        "ce",
        "Labels alone",
        "control",
        "CE(student, labels)",
        "-: plain training",
        (NO_TEACHER,),
        "always: what a distilled student must beat, on the same budget",
        ("-m loss=kd,ce student.seed=0,1,2", "loss=ce student.epochs=60"),
    ),
    Method(
        "label_smoothing",
        "Smoothed labels",
        "control",
        "CE with 1 - smoothing on the label and smoothing / K on every class",
        'C. Szegedy, V. Vanhoucke, S. Ioffe, J. Shlens, Z. Wojna, 2016, "Rethinking the Inception Architecture for'
        ' Computer Vision", CVPR, arXiv 1512.00567',
        (NO_TEACHER,),
        "is soft targets' gain more than that of soft labels, which cost nothing?",
        ("-m loss=kd,label_smoothing student.seed=0,1,2", "loss=label_smoothing loss.smoothing=0.2"),
    ),
    Method(
        "teacher_free",
        "Teacher-free KD (Tf-KD)",
        "control",
        "KL(softmax(u / T) || softmax(z_s)), mean over samples; u: `confidence` on the label, the rest even",
        'L. Yuan, F. Tay, G. Li, T. Wang, J. Feng, 2020, "Revisiting Knowledge Distillation via Label Smoothing'
        ' Regularization", CVPR, arXiv 1909.11723',
        (LABELS, NO_TEACHER),
        "is it the teacher, or regularisation?",
        ("-m loss=kd,teacher_free student.seed=0,1,2", "loss=teacher_free loss.T=10 loss.confidence=0.95"),
    ),
)

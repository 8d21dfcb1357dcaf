"""The catalogue's losses on features."""

from __future__ import annotations

from kdistill.config.method import BATCH, ONE_PAIR, TRAINS, Method

ON_FEATURES = (
    Method(
        "features",
        "Feature terms alone",
        "features",
        "alpha CE(student, labels) + the terms of feature=[NAME,...], each with its weight",
        "-: it only adds terms of other methods",
        ("at least one feature term",),
        "several feature methods together, and nothing on logits",
        ("loss=features feature=at", "loss=features feature=[at,sp]"),
    ),
    Method(
        "hint",
        "FitNets' hint",
        "features",
        "(r(F_s) - F_t)^2, mean; r: convolution and batch norm, and a ReLU where F_t has no negative value",
        'A. Romero, N. Ballas, S. E. Kahou, A. Chassang, C. Gatta, Y. Bengio, 2015, "FitNets: Hints for Thin Deep'
        ' Nets", ICLR, arXiv 1412.6550',
        ("maps of the middle stage", TRAINS),
        "networks of one family; across families the student can end below the one without a teacher",
        ("loss=hint", "loss=kd feature=hint loss.features.hint.weight=10"),
    ),
    Method(
        "at",
        "Attention transfer",
        "features",
        "(Q_s / |Q_s| - Q_t / |Q_t|)^2, mean over samples and pixels, summed over pairs; Q: mean of channels' |F|^p",
        'S. Zagoruyko, N. Komodakis, 2017, "Paying More Attention to Attention: Improving the Performance of'
        ' Convolutional Neural Networks via Attention Transfer", ICLR, arXiv 1612.03928',
        ("maps of all stages, with more than one pixel",),
        "cheap, whatever the numbers of channels; weak across families",
        ("loss=at", "loss=kd feature=at loss.features.at.weight=500"),
    ),
    Method(
        "sp",
        "Similarity-preserving distillation",
        "features",
        "|G_s - G_t|^2 / N^2; G: products of all pairs of samples, rows at norm 1",
        'F. Tung, G. Mori, 2019, "Similarity-Preserving Knowledge Distillation", ICCV, arXiv 1907.09682',
        ("maps of the last stage", BATCH),
        "layers that differ in width, size or kind",
        ("loss=sp", "loss=kd feature=sp loss.features.sp.weight=1000"),
    ),
    Method(
        "rkd",
        "Relational KD",
        "features",
        "distance_weight smooth_l1(distances / their mean) + angle_weight smooth_l1(cosines in triples of samples)",
        'W. Park, D. Kim, Y. Lu, M. Cho, 2019, "Relational Knowledge Distillation", CVPR, arXiv 1904.05068',
        ("embeddings (what goes into the head)", "batches of at least 3", "memory for N^3 numbers"),
        "beside kd; alone it is weak on CIFAR",
        ("loss=rkd", "loss=kd feature=rkd loss.features.rkd.angle_weight=100"),
    ),
    Method(
        "pkt",
        "Probabilistic knowledge transfer",
        "features",
        "q_t log(q_t / q_s), mean over N^2; q: (cosine of two samples + 1) / 2, rows of sum 1",
        'N. Passalis, A. Tefas, 2018, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV,'
        " arXiv 1803.10837",
        ("embeddings (what goes into the head)", BATCH),
        "embeddings of any width, nothing else to tune",
        ("loss=pkt", "loss=kd feature=pkt loss.features.pkt.weight=10000"),
    ),
    Method(
        "vid",
        "Variational information distillation",
        "features",
        "((r(F_s) - F_t)^2 / v + log v) / 2, mean, summed over pairs; v: a variance for each channel",
        'S. Ahn, S. X. Hu, A. Damianou, N. D. Lawrence, Z. Dai, 2019, "Variational Information Distillation for'
        ' Knowledge Transfer", CVPR, arXiv 1904.05835',
        ("maps of all stages", TRAINS),
        "some of the teacher's channels are out of the student's reach: their variance grows",
        ("loss=vid", "loss=kd feature=vid loss.features.vid.initial_variance=1"),
    ),
    Method(
        "nst",
        "Neuron selectivity transfer",
        "features",
        "squared maximum mean discrepancy between channel maps at norm 1, kernel (a . b)^2, summed over pairs",
        'Z. Huang, N. Wang, 2017, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer",'
        " arXiv 1707.01219",
        ("maps of all stages, with more than one pixel", "memory for N C^2 numbers"),
        "as at, where the channels' patterns matter and not only their mean",
        ("loss=nst", "loss=kd feature=nst loss.features.nst.weight=10"),
    ),
    Method(
        "crd",
        "Contrastive representation distillation",
        "features",
        "-log D(same sample) - sum over negatives of log(1 - D(other)), for student's and teacher's embeddings",
        'Y. Tian, D. Krishnan, P. Isola, 2020, "Contrastive Representation Distillation", ICLR, arXiv 1910.10699',
        (
            "embeddings (what goes into the head)",
            ONE_PAIR,
            TRAINS,
            "memory for two banks, each samples x dim, and for batch x samples products",
            "mixing=none",
        ),
        "the best feature method before 2021 in its authors' comparison, better with kd",
        ("loss=crd", "loss=kd feature=crd loss.features.crd.negatives=1024"),
    ),
    Method(
        "review_kd",
        "ReviewKD, knowledge review",
        "features",
        "sum over levels of HCL(fused student map, teacher map); HCL: squared errors at four sizes; deep levels are"
        " fused into shallow ones",
        'P. Chen, S. Liu, H. Zhao, J. Jia, 2021, "Distilling Knowledge via Knowledge Review", CVPR, arXiv 2104.09044',
        ("maps of all stages, and embeddings", TRAINS, "a warm-up: its weight is a ramp"),
        "CNNs: the strongest feature method that others have reproduced widely",
        ("loss=review_kd", "loss=kd feature=review_kd loss.features.review_kd.weight=1"),
    ),
    Method(
        "simkd",
        "SimKD, the teacher's classifier reused",
        "features",
        "(P(F_s) - F_t)^2, mean; the student is its trunk, the projector P and the teacher's frozen head",
        'D. Chen, J. Mei, H. Zhang, C. Wang, Y. Feng, C. Chen, 2022, "Knowledge Distillation with the Reused Teacher'
        ' Classifier", CVPR, arXiv 2203.14001',
        (
            "maps of the last stage",
            ONE_PAIR,
            TRAINS,
            "a teacher that ends in global average pooling and a linear layer",
            "no other feature term",
        ),
        "a student that may be larger: projector and head ship with it",
        ("loss=simkd", "loss=simkd loss.features.simkd.factor=4"),
    ),
)

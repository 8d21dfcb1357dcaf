"""Whether one model is better than another: paired scores of several seeds on the same test samples.

Two things are drawn by chance: the seeds that networks are trained with, and the samples that they are tested on. A
difference counts when it would be found again with other seeds and other samples, so both are random effects, crossed:
every seed meets every sample (H. H. Clark, "The Language-as-Fixed-Effect Fallacy", 1973; R. H. Baayen et al.,
"Mixed-effects modeling with crossed random effects for subjects and items", 2008; on seeds in machine learning:
X. Bouthillier et al., "Accounting for Variance in Machine Learning Benchmarks", 2021, arXiv 2103.03098).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

#: how often a difference is to be found that counts as large enough to be found
POWER = 0.9
#: more seeds than this are nobody's plan
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Paired:
    """The mean difference between two models, and what it varies by.

    `seed_variance`: of one seed's difference from the mean over all seeds; `sample_variance`: of the mean over these
    samples from that over all samples there could be, however many seeds there are.
    """

    difference: float
    seeds: int
    samples: int
    seed_variance: float
    sample_variance: float

    def half_width(self, confidence: float, seeds: int | None = None) -> float:
        """Half the interval's width at this confidence; with `seeds`, as it would be with so many of them.

        Each variance has the t quantile of its own degrees of freedom, which holds the confidence whatever their
        proportion is: S. K. Banerjee, "Approximate confidence interval for linear functions of means of k populations
        when the population variances are not equal", Sankhya 22, 1960.
        """
        from scipy.special import stdtrit  # not with the module: most commands compare nothing

        seeds = seeds or self.seeds
        share = (1 + confidence) / 2
        of_seeds = stdtrit(seeds - 1, share) ** 2 * self.seed_variance / seeds
        of_samples = stdtrit(self.samples - 1, share) ** 2 * self.sample_variance
        return math.sqrt(of_seeds + of_samples)

    def interval(self, confidence: float) -> tuple[float, float]:
        """Where the difference is, over all seeds and samples, with this confidence."""
        half = self.half_width(confidence)
        return self.difference - half, self.difference + half

    def detectable(self, confidence: float, seeds: int | None = None) -> float:
        """The smallest difference whose interval leaves out 0 in `POWER` of all such experiments, about."""
        return self.half_width(confidence, seeds) + self.half_width(2 * POWER - 1, seeds)

    def seeds_for(self, difference: float, confidence: float) -> int | None:
        """How many seeds it takes to find such a difference; None where only more test samples help."""
        counts = range(2, MOST_SEEDS + 1)
        return next((n for n in counts if self.detectable(confidence, n) <= difference), None)


def paired(control: Tensor, variant: Tensor) -> Paired:
    """Compare the scores of two models, float64 `[seeds, samples]` each, at least 2 x 2; rows share a seed.

    The mean squares of a two-way layout without replication give the variances. That of a seed is at least what
    single samples alone bring, so that seeds which agree by chance do not make a difference sure.
    """
    gaps = variant - control
    seeds, samples = gaps.shape
    mean = gaps.mean()
    by_seed, by_sample = gaps.mean(dim=1) - mean, gaps.mean(dim=0) - mean
    rest = gaps - mean - by_seed[:, None] - by_sample
    of_seeds = samples * by_seed.square().sum() / (seeds - 1)
    of_samples = seeds * by_sample.square().sum() / (samples - 1)
    residual = rest.square().sum() / ((seeds - 1) * (samples - 1))
    return Paired(
        difference=mean.item(),
        seeds=seeds,
        samples=samples,
        seed_variance=(of_seeds.maximum(residual) / samples).item(),
        sample_variance=((of_samples - residual).clamp(min=0) / (seeds * samples)).item(),
    )

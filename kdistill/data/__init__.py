"""Labelled images in batches: data sets, splits, and replayable augmentation."""

from kdistill.data.datasets import load_data
from kdistill.data.splits import Batch, Data, Split, sample_order
from kdistill.data.views import Views

__all__ = ["Batch", "Data", "Split", "Views", "load_data", "sample_order"]

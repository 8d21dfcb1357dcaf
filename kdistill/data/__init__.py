"""Images in batches: data sets, splits, replayable augmentation and mixing."""

from kdistill.data.augment import augmented
from kdistill.data.datasets import load_data
from kdistill.data.inputs import InputView
from kdistill.data.mixing import Mixing
from kdistill.data.splits import Batch, Data, Split, sample_order, slices
from kdistill.data.unlabelled import transfer
from kdistill.data.views import Views

__all__ = [
    "Batch",
    "Data",
    "InputView",
    "Mixing",
    "Split",
    "Views",
    "augmented",
    "load_data",
    "sample_order",
    "slices",
    "transfer",
]

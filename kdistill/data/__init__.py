"""Images in batches: data sets, splits, replayable augmentation and mixing."""

from kdistill.data.allviews import AllViews, Seen
from kdistill.data.augment import augmented
from kdistill.data.batch import Batch, Together
from kdistill.data.datasets import load_data
from kdistill.data.inputs import InputView
from kdistill.data.mixing import Mixing
from kdistill.data.shown import Shown
from kdistill.data.splits import Data, Split, sample_order, slices
from kdistill.data.unlabelled import transfer
from kdistill.data.views import Views

__all__ = [
    "AllViews",
    "Batch",
    "Data",
    "InputView",
    "Mixing",
    "Seen",
    "Shown",
    "Split",
    "Together",
    "Views",
    "augmented",
    "load_data",
    "sample_order",
    "slices",
    "transfer",
]

"""kdistill: distil a large image classifier into a small one.

The command line's stages as functions:

    from kdistill import load_config, run
    scores = run(load_config("loss.T=2", "student.epochs=10"))
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdistill.api import (
        compare,
        distill,
        evaluate,
        export,
        finetune,
        load_config,
        load_network,
        make_soft_targets,
        run,
        train_teacher,
    )
    from kdistill.errors import KdistillError
    from kdistill.losses import kd_loss
    from kdistill.plugins import register_loss

__version__ = version("kdistill")

#: public name -> module. Imported when first used: `kdistill --help` must not wait for torch.
_PUBLIC = {
    "KdistillError": "kdistill.errors",
    "compare": "kdistill.api",
    "distill": "kdistill.api",
    "evaluate": "kdistill.api",
    "export": "kdistill.api",
    "finetune": "kdistill.api",
    "kd_loss": "kdistill.losses",
    "load_config": "kdistill.api",
    "load_network": "kdistill.api",
    "make_soft_targets": "kdistill.api",
    "register_loss": "kdistill.plugins",
    "run": "kdistill.api",
    "train_teacher": "kdistill.api",
}

__all__ = [
    "KdistillError",
    "__version__",
    "compare",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "kd_loss",
    "load_config",
    "load_network",
    "make_soft_targets",
    "register_loss",
    "run",
    "train_teacher",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kdistill' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)

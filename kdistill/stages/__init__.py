"""The stages: one readable function each, in the order of the pipeline.

train_teacher -> make_soft_targets -> distill -> finetune -> evaluate        run: all of them
"""

from kdistill.stages.command import check_before, run_stage

__all__ = ["check_before", "run_stage"]

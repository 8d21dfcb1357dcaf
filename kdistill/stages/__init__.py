"""The stages: one readable function each, in the order of the pipeline.

train_teacher -> make_soft_targets -> distill -> finetune -> evaluate        run: all of them
                                                       -> export: the student in a file of another format
compare: run, for a control and variants over several seeds
"""

from kdistill.stages.command import check_before, run_stage

__all__ = ["check_before", "run_stage"]

"""What `kdistill --help` and `kdistill STAGE --help` say. Imports nothing heavy."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage, told to a user."""

    line: str
    reads: str
    does: str
    writes: str
    examples: tuple[str, str, str]


STAGES = {
    "train-teacher": Stage(
        "train the large network (the teacher)",
        "the data set; teacher.weights, if they are given",
        "trains `teacher` on the labels and keeps the state that is best on validation",
        "a teacher artifact, which every later stage finds by its config",
        (
            "kdistill train-teacher teacher=resnet56 dataset=cifar10",
            "kdistill train-teacher teacher.epochs=100 teacher.optim.lr=0.05",
            "kdistill train-teacher -m teacher=resnet20,resnet32",
        ),
    ),
    "soft-targets": Stage(
        "store the teacher's logits for every training image",
        "the data set and the trained teacher",
        "runs the teacher once over each augmented view of the training images",
        "a soft-targets artifact; all students that are distilled from it share it",
        (
            "kdistill soft-targets",
            "kdistill soft-targets soft_targets.views=10",
            "kdistill soft-targets soft_targets.dtype=float32",
        ),
    ),
    "distill": Stage(
        "train the small network (the student) on the teacher's outputs",
        "the data set and the trained teacher; soft targets, stored or made on the way",
        "trains `student` with alpha * CE(labels) + beta * T^2 * KL(teacher || student)",
        "a student artifact",
        (
            "kdistill distill student=mlp loss.T=4",
            "kdistill distill student.optim=adamw student.epochs=60",
            "kdistill distill -m loss.T=1,2,4,8 loss.alpha=0.1,0.5",
        ),
    ),
    "finetune": Stage(
        "fine-tune the distilled student on the labels",
        "the data set and the distilled student",
        "trains the student for a few epochs without the teacher",
        "a fine-tuned artifact",
        (
            "kdistill finetune",
            "kdistill finetune finetune.epochs=10 finetune.optim.lr=0.001",
            "kdistill finetune -m finetune.epochs=1,5,10",
        ),
    ),
    "eval": Stage(
        "measure teacher and student, or any model, on the test split",
        "the data set and whatever is trained; or model=PATH, weights of a `student` or a network's folder",
        "computes accuracy, likelihood, calibration, agreement with the teacher; operations, memory, time",
        "predictions, and a JSON and a CSV file beside the last artifact",
        (
            "kdistill eval",
            "kdistill eval -m loss.T=1,2,4,8 eval.cost=false",
            "kdistill eval model=weights.pt student=resnet8 dataset=cifar10",
        ),
    ),
    "export": Stage(
        "the student alone as a file for phones, browsers and servers (ONNX)",
        "the fine-tuned student, or the distilled one, or model=FOLDER; the test split",
        "writes the file, runs it on the test split, and keeps it if it gives the student's outputs",
        "an export artifact: one file, with class names and preprocessing in its metadata",
        (
            "kdistill export",
            "kdistill export student=mlp export.format=onnx",
            "kdistill export model=runs/artifacts/student/NAME dataset=digits",
        ),
    ),
    "run": Stage(
        "all stages in order; what is already there is not made again",
        "the data set",
        "trains the teacher, stores soft targets, distils, fine-tunes and measures",
        "all artifacts, and one table",
        (
            "kdistill run",
            "kdistill run dataset=fashion_mnist teacher=resnet20 student=cnn",
            "kdistill run -m student=mlp,cnn,resnet8",
        ),
    ),
    "compare": Stage(
        "tell whether the teacher helps: variants against a control, over several seeds",
        "the data set, and whatever is trained",
        "trains the student without a teacher (the control) and each variant; tests their difference",
        "the artifacts of `kdistill run`; comparison.json and comparison.csv in the run's folder",
        (
            "kdistill compare compare.losses=[kd,dkd] compare.seeds=5",
            "kdistill compare compare.variants.hot='loss.T=8 loss.alpha=0.5'",
            "kdistill compare student=mlp loss=dkd feature=[at]",
        ),
    ),
    "tune": Stage(
        "search for good settings of the student: many trials, one teacher",
        "the data set; what `search` says is varied; the study, where it was begun",
        "trains students with sampled settings, ends bad ones early, judges the best on the test split",
        "a study, all finished students, and the best settings as an option: loss=best",
        (
            "kdistill tune tune.trials=30",
            "kdistill tune search=losses tune.minutes=60 tune.workers=2",
            "kdistill tune search=students tune.against=parameters",
        ),
    ),
}

TOOLS = {
    "list": "what can be chosen: teachers, students, datasets, losses, layers, artifacts and more",
    "explain": "a method: its formula, paper, what it needs, when to use it, its settings",
    "plan": "what a run will take: time, memory and disk of each stage, from a few real steps",
    "predict": "classes of images: kdistill predict IMAGE|FOLDER [model=FOLDER|FILE.onnx]",
    "results": "all runs as one table: filtered, sorted, grouped, exported",
    "report": "one HTML page of a run, sweep, comparison or study: verdict, tables, figures, images",
    "plot": "one figure of that page as PNG or SVG: kdistill plot FIGURE [FOLDER]",
    "artifacts": "what is on disk: list, rm KEY..., gc",
}

#: what `kdistill list --help` and so on say
TOOL_HELP = {
    "list": f"""\
kdistill list [KIND]: {TOOLS["list"]}

  kdistill list                                    an overview
  kdistill list students                           one line about each
  kdistill list layers teacher=resnet20 student=cnn
                                                   both networks' layers that feature losses can compare""",
    "explain": f"""\
kdistill explain [METHOD]: {TOOLS["explain"]}

  kdistill explain                                 all methods, a line about each
  kdistill explain dkd                             all about one of them
  kdistill explain --trust my_loss.py mine         a loss of your own""",
    "plan": f"""\
kdistill plan [overrides of a run]: {TOOLS["plan"]}

  kdistill plan                                    the run of `kdistill run`, and what would make it fit
  kdistill plan dataset=cifar100 teacher=wrn_40_2 student=wrn_16_2
  kdistill plan -m loss=kd,ce student.seed=0,1,2   a sweep: what its jobs share is made once

Nothing is made or written. What is there already is `done`. Each stage takes at least three steps, as they will be;
an untrained network stands for a teacher that is not there yet, and made-up logits for soft targets.
memory: the whole process at its peak, on a GPU the tensors there. checkpoint: twice as much for a moment.
disk: with what each network says of the test split. device.processes: the time of one process, divided.
Not counted: evaluation, what processes send each other, writing to the disk, early stopping, what a cut-off run has
done already.""",
    "predict": """\
kdistill predict IMAGE|FOLDER... [overrides]: the likeliest classes of each image, with probabilities

  kdistill predict photo.jpg                       with the student of `kdistill run`, fine-tuned if it is
  kdistill predict photos/ student=mlp             of every image in a folder and below it
  kdistill predict photo.jpg model=runs/artifacts/export/NAME/model.onnx
  kdistill predict photos/ model=runs/artifacts/student/NAME predict.format=csv > classes.csv

predict.top=K: classes of each image (5). predict.format: table, json or csv. device.workers=N: processes that decode.
Images are brought to the student's size and colours as in training. What cannot be read is reported, the others go
on, and the exit code is 1. Multi-label: each class has a probability of its own. Regression: all values.""",
    "results": f"""\
kdistill results [filters] [options]: {TOOLS["results"]}

  kdistill results                                 all runs, the newest first
  kdistill results stage=run student=mlp loss.T=1,4
                                                   those with these settings, on their lines or by default
  kdistill results stage=run group=loss,loss.T     mean and standard deviation over all other settings, such as seeds
  kdistill results sort=-fine-tuned.top1 top=10 columns=run,loss,loss.T,fine-tuned.top1
  kdistill results group=student format=latex out=table.tex

filters: a setting (student=cnn, loss.T=4), stage, status (ok, failed, interrupted, running, cut off), any column;
a list lets each of its values through. sort=COLUMN,-COLUMN: upwards, downwards. top=N: so many rows.
columns=A,B: these, settings among them. format: table, csv, markdown, latex, json. out=FILE. runs=DIR (runs).""",
    "report": f"""\
kdistill report [FOLDER] [out=FILE.html] [runs=DIR]: {TOOLS["report"]}

  kdistill report                                  of what was finished last
  kdistill report runs/run/sweep_DATE              of a sweep; of a run, a comparison, a study likewise
  kdistill report runs/run/DATE out=page.html

The page is one file: no network, no scripts, light and dark, for screen and paper. It becomes FOLDER/report.html unless
`out` names another. Nothing is trained: what is stored is read, and test images if the data set is still there.""",
    "plot": f"""\
kdistill plot [FIGURE [FOLDER]] [out=FILE.png|FILE.svg] [runs=DIR]: {TOOLS["plot"]}

  kdistill plot                                    all figures, a line about each
  kdistill plot curves                             of what was finished last, in its folder
  kdistill plot confusion runs/run/DATE out=confusion.svg

A figure that there are several of, such as one for each setting, becomes FILE-1, FILE-2 and so on.""",
}

COMMANDS = [*STAGES, *TOOLS]

OPTIONS = """\
  -m, --multirun         run every combination of the lists in a sweep, such as loss.T=1,2,4
  -c, --cfg WHAT         show the composed config instead of running: job, hydra or all
      --resolve          with --cfg: show what ${...} stands for
  -p, --package KEY      with --cfg: show only this part, such as student.optim
  -i, --info [WHAT]      show how the config came about: all, config, defaults, defaults-tree,
                         plugins, searchpath
      --config-dir DIR   add a folder of configs; its options come before the shipped ones
                         (may be repeated; also KDISTILL_CONFIG_DIR, ~/.config/kdistill)
      --trust FILE.py    run a Python file of yours, whose losses become options (may be repeated)
  -h, --help             this text; after a stage: what it does, and all config groups
      --version          print the version
  -sc install=bash|zsh   completion with the Tab key: eval "$(kdistill -sc install=bash)\""""


def overview() -> str:
    stages = "\n".join(f"  {name:14} {stage.line}" for name, stage in STAGES.items())
    tools = "\n".join(f"  {name:14} {line}" for name, line in TOOLS.items())
    return f"""\
kdistill distils a large image classifier (teacher) into a small one (student).

usage: kdistill COMMAND [options] [group=option] [key=value] ...

stages:
{stages}

tools:
{tools}

options:
{OPTIONS}

examples:
  kdistill run                                    teacher and student on scikit-learn's digits
  kdistill train-teacher dataset=fashion_mnist    only the teacher
  kdistill distill student=mlp loss.T=4           one student
  kdistill distill -m loss.T=1,2,4,8              four students of one teacher, and a table
  kdistill distill --cfg job                      every setting and its value

`teacher=NAME` chooses an option of a group, `teacher.epochs=10` sets a value."""


def stage_help(name: str, groups: dict[str, list[str]]) -> str:
    """The text of one stage, with all config groups and their options."""
    stage = STAGES[name]
    examples = "\n".join(f"  {example}" for example in stage.examples)
    options = "\n".join(_group(group, names) for group, names in groups.items())
    return f"""\
kdistill {name}: {stage.line}

  reads    {stage.reads}
  does     {stage.does}
  writes   {stage.writes}

examples:
{examples}

config groups (choose with group=option):
{options}
  teacher.optim, student.optim and finetune.optim take an option of optim,
  student.optim.schedule (and so on) an option of schedule.

`kdistill {name} --cfg job` shows every setting, `--cfg job -p student.optim` a part of them;
`kdistill list` says a line about each option; `kdistill --help` shows the options of the command line."""


def _group(group: str, names: list[str]) -> str:
    return textwrap.fill(
        ", ".join(names) or "(none yet)", 98, initial_indent=f"  {group:13} ", subsequent_indent=" " * 16
    )

"""What a comparison trains: the control and the variants, each with the words of the command that makes it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from kdistill.config.compose import plan
from kdistill.config.overrides import values_of
from kdistill.config.schema import Config
from kdistill.errors import ConfigError
from kdistill.identity import key_of
from kdistill.stages.job import Job

CONTROL, AS_GIVEN = "control", "as given"
#: a teacher, what is learnt from it, and what the control has in the place of it
_METHOD = ("loss", "feature", "assistant", "generations", "finetune", "student.epochs")


@dataclass(frozen=True)
class Arm:
    """One side of a comparison. `words` are the overrides of `kdistill run` that make it, but for `student.seed`."""

    name: str
    words: list[str]
    config: Config

    def job(self, seed: int) -> Job:
        """The job of the student of this seed."""
        student = self.config.student.model_copy(update={"seed": seed})
        return Job.open(
            self.config.model_copy(update={"student": student}), [*self.words, f"student.seed={seed}"]
        )


def seeds_of(config: Config) -> list[int]:
    """The seeds of each arm's students."""
    first = config.student.seed
    return list(range(first, first + config.compare.seeds))


def arms(config: Config, overrides: Sequence[str]) -> list[Arm]:
    """The control and then the variants of a `compare` with these words of the user.

    Raises `ConfigError` for what cannot be composed, or makes no variant.
    """
    line = [word for word in overrides if not _is_about(word, "compare", "student.seed")]
    own = _own_words(config, line)
    return [_control(config, line), *(_variant(name, line, words) for name, words in own.items())]


def check_arms(found: Sequence[Arm]) -> None:
    """Raise `ConfigError` for a variant that is trained as the control or another one is, or has another test split."""
    control, *variants = (arm.job(arm.config.student.seed) for arm in found)
    seen: dict[str, str] = {}
    for arm, job in zip(found[1:], variants, strict=True):
        if job.config.loss.kind in ("ce", "kd") and not job.identity.needs_teacher:
            raise ConfigError(
                f"{arm.name} is no variant: its student learns from the labels alone, as the control does"
                " anyway; give it a teacher (loss.beta, feature=NAME) or another loss"
            )
        if job.data.test_fingerprint != control.data.test_fingerprint:
            raise ConfigError(
                f"{arm.name} has another test split than the control, and only on the same images can they be"
                f" compared; take the settings of dataset out of it: {shlex.join(arm.words)}"
            )
        parts = job.identity.finetuned if job.config.finetune.epochs else job.identity.student
        twin = seen.setdefault(key_of(parts), arm.name)
        if twin != arm.name:
            raise ConfigError(
                f"{twin} and {arm.name} are the same student, trained in the same way: take one of them out"
            )


# --- words ---


def _own_words(config: Config, line: Sequence[str]) -> dict[str, list[str]]:
    """By the name of each variant, what it adds to the line."""
    asked = config.compare
    given = {AS_GIVEN: list[str]()}
    is_given = any(_is_about(word, "loss", "feature") for word in line)
    chosen = {name: [f"loss={name}"] for name in asked.losses}
    named = {name: _split(name, words) for name, words in asked.variants.items()}
    for name, words in named.items():
        if name in (CONTROL, AS_GIVEN, *chosen):
            raise ConfigError(f"compare.variants.{name}: there is {name} already; choose another name")
        for word in words:
            if _is_about(word, "compare", "student.seed"):
                raise ConfigError(
                    f"compare.variants.{name}: {word} cannot be a variant's own; compare.seeds and student.seed"
                    " on the line say which seeds all of them have"
                )
            if len(values_of(word)) > 1:
                raise ConfigError(
                    f"compare.variants.{name}: {word} is a list: give each of its values a variant of its own"
                )
    if len(chosen) < len(asked.losses):
        raise ConfigError(f"compare.losses=[{','.join(asked.losses)}]: name each loss once")
    return (given if is_given or not (chosen or named) else {}) | chosen | named


def _split(name: str, words: str) -> list[str]:
    try:
        return shlex.split(words)
    except ValueError:
        raise ConfigError(
            f"compare.variants.{name}={words}: a quote has no end; write overrides as on a command line"
        ) from None


def _variant(name: str, line: Sequence[str], words: list[str]) -> Arm:
    """A variant's words come after those of the line; with a loss of its own it takes none of the line's about loss."""
    own = {_key(word) for word in words}
    method = ("loss", "feature") if "loss" in own else ("loss.features",) if "feature" in own else ()
    kept = [word for word in line if _key(word) not in own and not _is_about(word, *method)]
    return _arm(name, [*kept, *words])


def _control(config: Config, line: Sequence[str]) -> Arm:
    """The same student on the labels alone, for as many epochs as distillation and fine-tuning have together."""
    words = [word for word in line if not _is_about(word, *_METHOD)]
    epochs = config.student.epochs + config.finetune.epochs
    words += ["loss=ce", "finetune.epochs=0", f"student.epochs={epochs}"]
    if config.assistant is not None:
        words.append("assistant=null")
    if config.generations > 1:
        words.append("generations=1")
    if getattr(config.dataset, "unlabelled", None) is not None:
        words = [word for word in words if not _is_about(word, "dataset.unlabelled")]
        words.append("dataset.unlabelled=null")
    return _arm(CONTROL, words)


def _arm(name: str, words: list[str]) -> Arm:
    try:
        return Arm(name, words, plan("run", words).configs[0])
    except ConfigError as ex:
        raise ConfigError(f"{name}: {ex}") from None


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _is_about(word: str, *keys: str) -> bool:
    """Whether an override is of one of these settings or groups, or of a part of it."""
    return any(_key(word) == key or _key(word).startswith(f"{key}.") for key in keys)

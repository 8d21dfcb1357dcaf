"""The command `kdistill`: words -> a checked config -> Hydra -> a result, a message, an exit code.

Exit codes: 0 success, 1 a failure in a run, 2 a mistake of the user, 130 Ctrl-C.
Hydra and torch are imported only by the commands that need them.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdistill import helptext, launch, plugins
from kdistill.errors import (
    ConfigError,
    Interrupted,
    KdistillError,
    PeerLost,
    RunError,
    did_you_mean,
    first_line,
)
from kdistill.words import Words, parse

if TYPE_CHECKING:
    from kdistill.config.compose import Plan


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, return its exit code; errors become messages. By default this process's, which it ends."""
    if argv is None:
        gc.disable()
        launch.end(_obey(sys.argv[1:]))
    return _obey(list(argv))


def _obey(argv: list[str]) -> int:
    saved = os.environ.get("KDISTILL_DEBUG")
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ["KDISTILL_DEBUG"] = "1"
    try:
        with launch.own_place() as overrides:
            code = _dispatch(argv, overrides)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader left, as in `kdistill list | head -1`. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as ex:
        return _fail(str(ex) or "interrupted", Interrupted.exit_code)
    except Exception as ex:
        return _report(ex)
    finally:
        if saved is None:
            os.environ.pop("KDISTILL_DEBUG", None)


def _dispatch(argv: list[str], overrides: list[str]) -> int:
    """Run a command line; a stage is given further `overrides`."""
    if argv[:1] in (["-sc"], ["--shell-completion"]):
        from kdistill import completion

        return completion.main(argv[1:])
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    words = parse(argv)
    if "--version" in words.flags:
        return _say(f"kdistill {_version()}")
    if not argv or (not words.command and "--help" in words.flags):
        return _say(helptext.overview())
    _check_command(words)
    if words.command == "artifacts":
        from kdistill import housekeeping

        return int(housekeeping.main([*words.flags, *words.rest]))
    from kdistill.config import folders

    folders.use_folders(words.config_dirs, remember=True)
    plugins.forget()
    for file in words.trusted:
        plugins.trust(file)
    if words.command in helptext.TOOLS:
        return _say(helptext.TOOL_HELP[words.command]) if "--help" in words.flags else _tell(words)
    if "--help" in words.flags:
        groups = {group: list(options) for group, options in folders.groups().items()}
        return _say(helptext.stage_help(words.command, groups))
    if words.only_shows:
        return _show(words)
    return _run_as_rank(words, overrides) if launch.is_rank() else _run(words, argv)


def _check_command(words: Words) -> None:
    commands = f"commands: {', '.join(helptext.COMMANDS)}"
    if not words.command:
        raise ConfigError(f"no command\n{commands}")
    if "=" in words.command:
        raise ConfigError(f"no command before {words.command!r}\n{commands}")
    if words.command not in helptext.COMMANDS:
        near = did_you_mean(words.command, helptext.COMMANDS)
        raise ConfigError(f"unknown command {words.command!r}.{near}\n{commands}")
    for needs in ("--resolve", "--package"):
        if needs in words.flags and "--cfg" not in words.flags:
            raise ConfigError(f"{needs} needs --cfg job")
    together = [flag for flag in ("--multirun", "--cfg", "--info") if flag in words.flags]
    if len(together) > 1:
        raise ConfigError(f"{' and '.join(together)} do not go together")


# --- commands ---


def _tell(words: Words) -> int:
    _settle()
    if words.command == "plan":
        from kdistill import planning

        return planning.main(words.rest, "--multirun" in words.flags)
    if words.command == "predict":
        from kdistill import predicting

        return predicting.main(words.rest)
    if words.command == "results":
        from kdistill import results

        return results.main(words.rest)
    if words.command in ("report", "plot"):
        from kdistill.reporting import commands

        return commands.report(words.rest) if words.command == "report" else commands.plot(words.rest)
    from kdistill import explaining, listing

    return explaining.main(words.rest) if words.command == "explain" else listing.main(words.rest)


def _show(words: Words) -> int:
    from omegaconf import OmegaConf

    from kdistill import hydra_app
    from kdistill.config import compose

    cfg, overrides = compose.preview(words.command, words.rest)
    package = words.flags.get("--package", "_global_")
    if package != "_global_" and OmegaConf.select(cfg, package) is None:
        from kdistill.config import explain

        raise ConfigError(f"--package: {explain.unknown_setting(package, cfg)}")
    flags = [
        part
        for name, value in words.flags.items()
        if name not in ("--config-dir", "--trust")
        for part in (name, value)
        if part
    ]
    hydra_app.call([*flags, *overrides])
    return 0


def _run_as_rank(words: Words, overrides: list[str]) -> int:
    from kdistill import ranks

    ranks.join()
    with ranks.main_first():  # it downloads
        plan = _planned(words, overrides)
    return _carry_out(plan)


def _run(words: Words, argv: list[str]) -> int:
    plan = _planned(words)
    processes = plan.configs[0].device.processes
    return launch.start(argv, processes) if processes > 1 else _carry_out(plan)


def _planned(words: Words, overrides: Sequence[str] = ()) -> Plan:
    """What a command will do, and that it can be done."""
    from kdistill.config import compose, folders

    plan = compose.plan(words.command, [*words.rest, *overrides], "--multirun" in words.flags)
    if plan.multirun and (launch.is_rank() or any(c.device.processes > 1 for c in plan.configs)):
        raise ConfigError("-m goes with device.processes=1 alone: give the command once for each job instead")
    if plan.multirun and words.command == "tune":
        raise ConfigError(
            "-m does not go with tune, which is a search of its own: give the command once for each"
        )
    if folders.user_dirs():
        from kdistill.console import complain

        complain(f"configs also from {', '.join(map(str, folders.user_dirs()))}")
    from kdistill import stages

    stages.check_before(plan.configs, [compose.users_words(job) for job in plan.jobs])
    if plan.launcher.is_parallel:
        from kdistill.engine import Engine

        if any(Engine.open(config.device).device.type == "cuda" for config in plan.configs):
            plan.launcher.check_gpu()
    _settle()
    return plan


def _settle() -> None:
    """Collect garbage from now on, but never look for it among what imports and plans have made.

    Those are hundreds of thousands of objects that stay until the process ends: looking through them again and
    again, and once more at the end, is time that a short command's user waits for.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _carry_out(plan: Plan) -> int:
    from kdistill.files import storage_errors

    _make_folder(plan)
    with storage_errors(Path(plan.configs[0].runs)):  # Hydra, too, writes into the run's folder
        return _hydra_jobs(plan)


def _hydra_jobs(plan: Plan) -> int:
    from kdistill import hydra_app

    argv = ["--multirun", *plan.overrides]
    ended: KeyboardInterrupt | RunError | None = None
    try:
        if plan.launcher.is_parallel:
            from kdistill import workers

            workers.prepare(plan)
            with workers.supervised(plan.launcher.name):
                hydra_app.call(argv, workers.WorkerTask())
        elif plan.multirun:
            hydra_app.call(argv)
        else:
            hydra_app.run(plan.cfg, plan.folder)
    except (KeyboardInterrupt, RunError) as ex:
        ended = ex
    if plan.multirun:
        from kdistill import sweeps

        code = sweeps.report(plan)
    else:
        code = 0 if ended else _report_single()
    if isinstance(ended, KeyboardInterrupt):
        raise KeyboardInterrupt(
            str(ended) or "interrupted. Give the same command again: it goes on where it stopped"
        )
    if ended:
        raise ended
    return code


def _make_folder(plan: Plan) -> None:
    """Make the run's folder: where it cannot be made, say so before Hydra fails in its own words."""
    from kdistill.errors import StorageError
    from kdistill.task import storage_error

    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as ex:
        runs = Path(plan.configs[0].runs)
        reason = storage_error(ex, runs) or StorageError(
            f"cannot make the folder {plan.folder}: {ex.strerror}. Choose another folder with runs=DIR"
        )
        raise reason from ex


def _report_single() -> int:
    from kdistill import task
    from kdistill.console import say, show_table

    outcome = task.last
    if outcome is None or outcome.result is None:
        return _fail(outcome.error, outcome.exit_code) if outcome else 1
    for table in outcome.result.tables:
        show_table(table)
    if outcome.result.message:
        say(outcome.result.message)
    return 0


# --- messages ---


def _report(ex: Exception) -> int:
    from kdistill.console import debug

    if debug():
        traceback.print_exc()
    if isinstance(ex, KdistillError):
        return _fail(str(ex), ex.exit_code)
    from kdistill.config.explain import explain

    text = explain(ex)
    if text is not None:
        return _fail(text, ConfigError.exit_code)
    return _fail(f"{type(ex).__name__}: {first_line(ex)}\nKDISTILL_DEBUG=1 shows the traceback", 1)


def _fail(text: str, code: int) -> int:
    if code != PeerLost.exit_code and launch.is_heard():
        sys.stderr.write(text + "\n")
    if not launch.is_rank():
        return code
    from kdistill import ranks

    return ranks.leave(text, code)


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    return 0


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("kdistill")
    except metadata.PackageNotFoundError:
        return "(not installed)"

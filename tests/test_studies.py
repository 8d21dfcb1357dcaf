"""A study: what is sampled, whose a trial is, and what a kill leaves. No network is trained."""

import json
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from kdistill.config.search import Choice, FloatRange, IntRange, LogRange, Range, Tune
from kdistill.studies import Pruned, Study

SEARCH: dict[str, Range] = {
    "loss.T": LogRange(type="log", low=1, high=16),
    "loss.alpha": FloatRange(type="float", low=0, high=0.9),
    "student.batch_size": IntRange(type="int", low=8, high=12),
    "loss": Choice(type="choice", choices=["kd", "dkd"]),
}
Open = Callable[..., Study]


def settings(**changes: object) -> Tune:
    values = {"name": None, "trials": 12, "minutes": None, "workers": 1, "sampler": "tpe", "seed": 0}
    values |= {"pruner": None, "metric": None, "against": None, "final": True}
    return Tune.model_validate(values | changes)


@pytest.fixture
def study(tmp_path: Path) -> Open:
    """Open a study in a folder; each call is another process's hold on it."""

    def enter(name: str = "study", directions: tuple[str, ...] = ("maximize",), **changes: object) -> Study:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Study(folder, SEARCH, settings(**changes), directions, epochs=9)  # type: ignore[arg-type]

    return enter


def score(trial: optuna.Trial) -> float:
    """Best at T=4, and a little better with a small alpha."""
    return -abs(trial.params["loss.T"] - 4) - 0.01 * trial.params["loss.alpha"]


def run(study: Study) -> None:
    while (trial := study.next()) is not None:
        study.complete(trial, [score(trial)], {"seconds": 1.0})


def sampled(study: Study) -> list[dict[str, object]]:
    return [trial.params for trial in study.trials]


def test_what_is_sampled_lies_in_the_ranges(study: Open) -> None:
    """Each setting has a value of its type between its ends, and all choices come up."""
    one = study(sampler="random", trials=40)
    run(one)

    for params in sampled(one):
        assert 1 <= params["loss.T"] <= 16
        assert 0 <= params["loss.alpha"] <= 0.9
        assert params["student.batch_size"] in range(8, 13)
    assert {params["loss"] for params in sampled(one)} == {"kd", "dkd"}
    assert sum(params["loss.T"] < 4 for params in sampled(one)) in range(
        12, 29
    )  # half of them: the scale is log


def test_the_seed_alone_decides(study: Open) -> None:
    """The same seed gives the same study in another folder, another seed another one."""
    first, same, other = study("a"), study("b"), study("c", seed=1)
    for each in (first, same, other):
        run(each)

    assert sampled(first) == sampled(same)
    assert sampled(first)[0] != sampled(other)[0]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_that_was_cut_off_samples_what_it_would_have(study: Open, sampler: str) -> None:
    """Processes that vanish in their first, second, third trial: the same twelve trials as without, none twice."""
    straight, killed = study("straight", sampler=sampler), study("killed", sampler=sampler)
    run(straight)
    for trials in (1, 2, 3):
        for _ in range(trials - 1):
            trial = killed.next()
            assert trial is not None
            killed.complete(trial, [score(trial)], {})
        killed.next()
        killed.close()  # as a kill does: the lock is free
        killed = study("killed", sampler=sampler)
    run(killed)

    assert sampled(killed) == sampled(straight)
    assert [trial.values for trial in killed.trials] == [trial.values for trial in straight.trials]


def test_a_trial_is_taken_up_only_when_its_process_is_gone(study: Open) -> None:
    """A second process gets another trial; when the first one is gone, the first's trial, with what it reported."""
    first, second = study(pruner="none"), study(pruner="none")
    begun, other = first.next(), second.next()
    assert begun is not None
    assert other is not None
    first.report(begun, 0.5, 1)
    assert (begun.number, other.number) == (0, 1)
    second.complete(other, [0.1], {})
    assert not second.is_over

    first.close()
    taken = second.next()

    assert taken is not None
    assert (taken.number, taken.params) == (0, begun.params)
    assert second.trials[0].intermediate_values == {1: 0.5}


def test_epochs_that_are_told_again_count_once(study: Open) -> None:
    """As when a training goes on: what was reported stays, without a word of Optuna's."""
    one = study()
    trial = one.next()
    assert trial is not None
    for value, epoch in ((0.5, 1), (0.6, 2), (0.4, 1), (0.7, 3)):
        one.report(trial, value, epoch)

    assert one.trials[0].intermediate_values == {1: 0.5, 2: 0.6, 3: 0.7}


def test_trials_that_failed_do_not_count_and_those_at_work_do(study: Open) -> None:
    """Of three trials: one complete, one ended early, one failed, one at work elsewhere: no more are given."""
    here, elsewhere = study(trials=3), study(trials=3)
    complete, failed, pruned = (here.next() for _ in range(3))
    assert complete is not None
    assert failed is not None
    assert pruned is not None
    assert here.next() is None
    here.fail(failed, {"reason": "the loss is not finite"})
    here.complete(complete, [0.5], {})
    here.prune(pruned, {})
    last = elsewhere.next()
    assert last is not None

    assert here.next() is None
    assert not here.is_over
    elsewhere.complete(last, [0.7], {})
    assert here.next() is None
    assert here.is_over
    assert here.front == [3]


def test_a_bad_trial_is_ended_early(study: Open) -> None:
    """The median of five others after the same epoch decides; with two scores there is no pruning."""
    one = study(pruner="median")
    for value in (1, 2, 3, 4, 5):
        trial = one.next()
        assert trial is not None
        one.report(trial, value, 1)
        one.complete(trial, [value], {})
    good, bad = one.next(), one.next()
    assert good is not None
    assert bad is not None

    one.report(good, 3.1, 1)
    with pytest.raises(Pruned):
        one.report(bad, 2.9, 1)
    with pytest.raises(Pruned):  # also where the process was killed before it could end the trial
        one.look(bad)


@pytest.mark.parametrize(("pruner", "ends"), [("median", True), ("hyperband", True), ("none", False)])
def test_pruners(study: Open, pruner: str, ends: bool) -> None:
    """Thirty trials of nine epochs, whose order is plain from the first one: all count, bad ones end early."""
    one = study(pruner=pruner, trials=30)
    while (trial := one.next()) is not None:
        try:
            for epoch in range(1, 10):
                one.report(trial, score(trial) - 1 / epoch, epoch)
            one.complete(trial, [score(trial)], {})
        except Pruned:
            one.prune(trial, {})

    states = [trial.state.name for trial in one.trials]
    assert len(states) == 30
    assert set(states) == ({"COMPLETE", "PRUNED"} if ends else {"COMPLETE"})


def test_two_scores_have_a_front(study: Open) -> None:
    """Accuracies 1, 3, 2 at sizes 1, 3, 4: the third is worse than the second in both."""
    one = study(directions=("maximize", "minimize"), against="parameters")
    for values in ([1, 1], [3, 3], [2, 4]):
        trial = one.next()
        assert trial is not None
        one.look(trial)  # prunes nothing
        one.complete(trial, values, {})

    assert one.front == [0, 1]


def test_importance_finds_the_setting_that_matters(study: Open) -> None:
    """The score is a function of T alone, but for a hundredth of alpha; where all are equal there is none to tell."""
    one, flat = study("one", sampler="random", trials=40), study("flat", trials=3)
    run(one)
    while (trial := flat.next()) is not None:
        flat.complete(trial, [0.5], {})
    shares = one.importance

    assert shares is not None
    assert next(iter(shares)) == "loss.T"
    assert shares["loss.T"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert flat.importance is None


def test_a_torn_line_is_cut(study: Open) -> None:
    """A full disk has cut the journal's last line off: what comes before is there, and the study goes on."""
    one = study()
    trial = one.next()
    assert trial is not None
    one.complete(trial, [1.0], {})
    one.close()
    journal = one.folder / "journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')

    again = study()
    run(again)

    assert len(again.trials) == 12
    assert again.trials[0].values == [1.0]
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_the_dashboard_opens_the_journal(study: Open) -> None:
    """`optuna-dashboard journal.log` lists the study and its trials."""
    dashboard = pytest.importorskip("optuna_dashboard")
    one = study(trials=3)
    run(one)
    backend = optuna.storages.journal.JournalFileBackend(str(one.folder / "journal.log"))
    app = dashboard.wsgi(optuna.storages.JournalStorage(backend))
    answers: list[str] = []

    def asked(path: str) -> dict[str, object]:
        import io
        import sys

        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "here", "SERVER_PORT": "80"}
        environ |= {"wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr, "wsgi.url_scheme": "http"}  # type: ignore[dict-item]
        body = b"".join(app(environ, lambda status, headers, info=None: answers.append(status)))
        return json.loads(body)  # type: ignore[no-any-return]

    (summary,) = asked("/api/studies")["study_summaries"]  # type: ignore[misc]
    assert summary["study_name"] == "study"
    assert len(asked(f"/api/studies/{summary['study_id']}")["trials"]) == 3  # type: ignore[arg-type]
    assert all(answer.startswith("200") for answer in answers)

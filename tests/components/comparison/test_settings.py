"""What differs between two runs, in words; and the curves of a page."""

from typing import Any

from components.comparison.contestants import Contestant, StageResult
from components.comparison.curves import curves_of, draw_curves
from components.comparison.differences import scores_between, settings_between, unrecorded
from components.scores import Score
from model.metrics import LogPoint


def contestant(name: str, configs: dict[str, Any], scores: dict[str, Score] | None = None) -> Contestant:
    return Contestant(name, (), configs, {}, scores or {})


def trained(rate: float, **more: Any) -> dict[str, Any]:
    return {
        "training of stage3": {"steps": 10, "optimizer": {"learning_rate": rate, "betas": [0.9, 0.99]}, **more},
        "encoding and plans": {"seed": 1, "stages": [{"name": "stage3", "steps": 10}]},
    }


def test_one_setting_is_told_as_one_with_its_place() -> None:
    (only,) = settings_between(contestant("a", trained(1e-3)), contestant("b", trained(1e-4)))
    assert (only.name, only.places) == ("learning rate of optimizer", ("training of stage3",))
    assert (only.old, only.new, only.change) == ("0.001", "0.0001", "10 times less")


def test_a_setting_that_two_parts_are_told_is_one() -> None:
    old, new = trained(1e-3), trained(1e-3)
    new["training of stage3"]["steps"] = new["encoding and plans"]["stages"][0]["steps"] = 40
    (only,) = settings_between(contestant("a", old), contestant("b", new))
    assert (only.name, only.old, only.new, only.change) == ("steps", "10", "40", "4 times as much")
    assert only.places == ("training of stage3", "encoding and plans")


def test_absent_and_unrecorded_are_not_the_same() -> None:
    (only,) = settings_between(contestant("a", trained(1e-3)), contestant("b", trained(1e-3, masks={"mask_no": 0.5})))
    assert (only.name, only.old, only.new) == ("mask no of masks", "not set", "0.5")
    silent = contestant("c", {"training of stage3": {}})
    assert settings_between(contestant("a", trained(1e-3)), silent) == []
    assert unrecorded(contestant("a", trained(1e-3)), silent) == [
        "c does not say the settings of its training of stage3",
        "c does not say the settings of its encoding and plans",
    ]


def test_a_setting_that_older_code_does_not_have_is_nobodys_choice() -> None:
    old, new = contestant("a", trained(1e-3)), contestant("b", trained(1e-4, novelty=1))
    new.lineage["code"] = "newer"
    told = {each.name: each.other_code for each in settings_between(old, new)}
    assert told == {"learning rate of optimizer": False, "novelty": True}


def test_scores_are_better_worse_or_chance() -> None:
    old = contestant("a", {}, {"motion": Score(0.5, 0.4, 0.6), "held_out_loss": Score(1, 1, 1), "x": Score(1, 0, 2)})
    new = contestant("b", {}, {"motion": Score(0.8, 0.7, 0.9), "held_out_loss": Score(2, 2, 2), "x": Score(2, 1, 3)})
    told = [(change.name, change.verdict) for change in scores_between(old, new)]
    assert told == [("motion", "better"), ("held_out_loss", "perhaps worse"), ("x", "no more than chance")]


def test_curves_run_over_all_stages() -> None:
    def points(*losses: float) -> list[LogPoint]:
        return [LogPoint(step, 1, loss, 1.0, 1e-3, 4, 64, 1e9, 0.5) for step, loss in enumerate(losses, 1)]

    stages = (
        StageResult("stage1", 2, "", "", points(4.0, 3.0)), StageResult("stage2", 2, "", "", points(2.0, float("nan"))),
    )  # fmt: skip
    curves, starts = curves_of(Contestant("a", stages, {}, {}, {}))
    assert curves["loss"] == [(1, 4.0), (2, 3.0), (3, 2.0)] and starts == [(0, "stage1"), (2, "stage2")]
    drawn = draw_curves([Contestant("a", stages, {}, {}, {}), Contestant("b", stages[:1], {}, {}, {})])
    assert [name for name, _ in drawn][:4] == ["loss", "learning_rate", "grad_norm", "samples_per_s"]
    assert all(svg.startswith("<svg") and "stage2" in svg for _, svg in drawn)
    assert drawn == draw_curves([Contestant("a", stages, {}, {}, {}), Contestant("b", stages[:1], {}, {}, {})])

from pipelines.local.retries import Budgets, cause_of, run_until_done


def test_what_a_stage_said_decides_the_cause() -> None:
    assert cause_of([{"task": "train"}, {"ending": 75, "sentence": "Told to stop."}, {"error": "later"}]) == "preempted"
    assert cause_of([{"ending": 70, "sentence": "Nothing moved."}]) == "fault"
    assert cause_of([{"error": "a wrong path."}]) == "mistake"
    assert cause_of([{"node": "stage1", "state": "running"}]) == "fault"  # killed without a word


def test_each_cause_has_its_own_budget() -> None:
    said: list[str] = []
    course = iter(["preempted", "fault", "preempted", "preempted", None])
    assert run_until_done(lambda: next(course), Budgets(preemptions=3, faults=1), said.append) is None  # type: ignore[arg-type]
    assert len(said) == 4 and said[-1] == "preempted: started again, 3 of at most 3 times"
    course = iter(["fault", "preempted", "fault"])
    assert run_until_done(lambda: next(course), Budgets(preemptions=9, faults=1), said.append) == "fault"  # type: ignore[arg-type]
    assert run_until_done(lambda: "mistake", Budgets(), said.append) == "mistake"

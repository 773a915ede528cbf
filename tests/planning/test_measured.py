"""Plans held to what they promise, on machines whose latencies are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_pointwise.deploying import AS_IS
from onnx_pointwise.errors import PlanError, TargetError
from onnx_pointwise.graph.plan import Choice, Plan
from onnx_pointwise.latency.network import NetworkLatency, Timing
from onnx_pointwise.planning.measured import CLOSE, faster, meeting

SITES = 40


class Machine:
    """Sites of one second each that each rank shortens; a network takes what a law makes of their sum."""

    provider, threads, dense, deployment = "cpu", 1, float(SITES), AS_IS

    def __init__(self, law: Any = lambda share: share, kept: float = 1.0, noise: float = 0.01) -> None:
        self.law, self.kept, self.noise = law, kept, noise
        self.sites: dict[str, Any] = {}
        self.inside: dict[str, float] = {}
        self.timed: list[float] = []

    def seconds(self, name: str, choice: Choice | None) -> float:
        if choice is None:
            return 1.0
        assert isinstance(choice.rank, int)
        return choice.rank / 100.0

    def sum_of_sites(self, choices: dict[str, Choice]) -> float:
        return 1.0 - sum(1.0 - self.seconds(name, choice) for name, choice in choices.items()) / self.dense

    def predict(self, choices: dict[str, Choice]) -> float:
        return 1.0 / (1.0 + self.kept * (1.0 / self.sum_of_sites(choices) - 1.0))

    def promised(self, share: float) -> float:
        return 1.0 / (1.0 + (1.0 / share - 1.0) / self.kept)

    def time(self, plan: Plan) -> Timing:
        ratio = self.law(self.sum_of_sites(dict(plan.choices)))
        self.timed.append(ratio)
        return Timing(ratio, self.noise, "faster" if ratio < 1.0 - self.noise else "no change")


def planner(floor: float) -> Any:
    """Share a promise out evenly, in whole percents, down to a floor."""

    def make(share: float) -> Plan:
        if share < floor:
            raise TargetError("latency", floor, "too low")
        steps = math.floor(share * 100 * SITES + 1e-6)
        ranks = [steps // SITES + (index < steps % SITES) for index in range(SITES)]
        return Plan({f"conv{index}": Choice("reduce", rank) for index, rank in enumerate(ranks) if rank < 100})

    return make


def as_latency(machine: Machine) -> NetworkLatency:
    return machine  # type: ignore[return-value]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0.35, 0.9), st.floats(0.6, 1.5), st.floats(0.7, 1.3))
def test_a_target_within_reach_is_met(target: float, power: float, kept: float) -> None:
    """However the network's latency depends on what its sites promise, as long as it rises with it."""
    machine = Machine(lambda share: share**power, kept)
    plan = meeting(target, planner(0.05), as_latency(machine))
    assert abs(plan.latency["measured"] - target) <= CLOSE * target
    assert plan.latency["measured"] in machine.timed


def test_a_good_prediction_takes_one_measurement() -> None:
    machine = Machine(lambda share: 1.0 / (1.0 + 0.8 * (1.0 / share - 1.0)), kept=0.8)
    meeting(0.6, planner(0.1), as_latency(machine))
    assert len(machine.timed) == 1


def test_a_refusal_says_how_far_the_machine_can_tell() -> None:
    machine = Machine(lambda share: 0.3 + 0.7 * share, noise=0.12)
    with pytest.raises(PlanError, match=r"took 0\.580 .* as far as a machine tells on which that varies by 0\.12; ask"):
        meeting(0.5, planner(0.4), as_latency(machine))


def test_what_is_out_of_reach_is_refused_with_the_best_there_was() -> None:
    machine = Machine(lambda share: 0.3 + 0.7 * share)
    with pytest.raises(PlanError, match=r"0\.5 of the latency on cpu .* took 0\.580"):
        meeting(0.5, planner(0.4), as_latency(machine))


@given(st.floats(0.2, 0.9), st.floats(0.7, 1.4), st.floats(0.8, 1.3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_where_plans_are_far_apart_one_below_the_target_is_found(target: float, power: float, kept: float) -> None:
    """A network of a few sites may have nothing within 5 % of a target: then the next faster one will do."""

    def make(share: float) -> Plan:
        steps = [step for step in (0.1, 0.35, 0.5, 0.8) if step <= share]
        if not steps:
            raise TargetError("latency", 0.1, "too low")
        return planner(0.05)(steps[-1])

    machine = Machine(lambda share: share**power, kept)
    reached = [step**power for step in (0.1, 0.35, 0.5, 0.8)]
    plan = meeting(target, make, as_latency(machine))
    assert plan.latency["measured"] <= (1.0 + CLOSE) * target
    assert min(reached) * (1 - 1e-9) <= plan.latency["measured"]


def test_a_target_that_only_the_sites_do_not_promise_is_met_all_the_same() -> None:
    machine = Machine(lambda share: share * 0.8, kept=0.5)
    plan = meeting(0.41, planner(0.5), as_latency(machine))
    assert plan.latency["measured"] == pytest.approx(0.4, abs=0.01)


def test_another_budget_that_cannot_be_met_stays_an_error() -> None:
    def make(share: float) -> Plan:
        raise TargetError("macs", 0.7, "too few MACs")

    with pytest.raises(TargetError, match="MACs"):
        meeting(0.5, make, as_latency(Machine()))


def test_a_faster_network_stays_as_it_is() -> None:
    plan = planner(0.1)(0.7)
    kept = faster(plan, as_latency(Machine()))
    assert kept.choices == plan.choices
    assert kept.latency["measured"] == pytest.approx(0.7)


def test_sites_that_save_least_go_back_until_the_network_is_faster() -> None:
    choices = {f"conv{index}": Choice("reduce", 50 + index) for index in range(8)}
    left: list[int] = []

    class Odd(Machine):
        def time(self, plan: Plan) -> Timing:
            left.append(len(plan.choices))
            return Timing(1.2, 0.05, "slower") if len(plan.choices) > 2 else Timing(0.9, 0.05, "faster")

    plan = faster(Plan(choices), as_latency(Odd()))
    assert left == [8, 4, 2]
    assert set(plan.choices) == {"conv0", "conv1"}
    assert {refusal.code for refusal in plan.refusals.values()} == {"network_not_faster"}
    assert plan.refusals["conv7"].numbers == {"latency": 1.2, "noise": 0.05}


def test_a_network_that_nothing_makes_faster_comes_back_untouched_with_reasons() -> None:
    machine = Machine(lambda share: 1.0)
    plan = faster(planner(0.1)(0.5), as_latency(machine))
    assert plan.choices == {}
    assert len(plan.refusals) == SITES
    assert plan.latency["measured"] is None


def test_what_was_decided_by_hand_stays() -> None:
    choices = {"conv0": Choice("reduce", 90), "conv1": Choice("reduce", 50)}
    plan = faster(Plan(choices), as_latency(Machine(lambda share: 1.0)), fixed=["conv0"])
    assert set(plan.choices) == {"conv0"}

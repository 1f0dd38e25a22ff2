"""Which addresses may move, and where to."""

from __future__ import annotations

from typing import Any

import pytest

from agent.plan import Address, Plan
from orchestrator.plan import Options, Refusal
from tests.support.facts import Case, address, established, listener, other


def spoilt(case: Case) -> Refusal:
    result = case.judge()
    assert isinstance(result, list), result
    (only,) = result
    return only


def moved(case: Case) -> tuple[Address, ...]:
    result = case.judge()
    assert isinstance(result, Plan), result
    return result.addresses


def found(case: Case, text: str) -> Any:
    return next(one for one in case.source["addresses"] if one["address"] == text)


def test_both_families() -> None:
    case = Case()
    case.process["listeners"] = [listener("::", 6379)]
    case.process["connections"].append(established("fd77::100", "fd77::13"))
    assert [(one.address, one.prefixlen, one.family) for one in moved(case)] == [
        ("10.77.0.100", 24, 4),
        ("fd77::100", 64, 6),
    ]


def test_nothing_to_move() -> None:
    case = Case()
    case.process["listeners"] = [listener("0.0.0.0", 6379), listener("127.0.0.1", 6380)]
    case.process["connections"] = []
    assert moved(case) == ()


def test_named_by_the_user() -> None:
    case = Case()
    case.process["listeners"] = [listener("0.0.0.0", 6379)]
    case.process["connections"] = []
    case.options = Options(address=("10.77.0.100", "fd77:0::100", "10.77.0.100"))
    assert [one.address for one in moved(case)] == ["10.77.0.100", "fd77::100"]


def test_named_by_the_user_but_not_there() -> None:
    case = Case()
    case.options = Options(address=("10.77.0.150",))
    refusal = spoilt(case)
    assert refusal.code == "address-absent"
    assert "10.77.0.150 (--address)" in refusal.message


@pytest.mark.parametrize(
    ("text", "over", "words"),
    [
        ("10.77.0.100", {"dynamic": True}, "for a time only"),
        ("10.77.0.100", {"has_secondaries": True}, "would go with it"),
        ("fd77::11", {}, "/etc/hosts has it for src"),
    ],
)
def test_not_movable(text: str, over: dict[str, Any], words: str) -> None:
    case = Case()
    found(case, text).update(over)
    case.process["connections"] = [established(text, "fd77::13")]
    case.process["listeners"] = [listener(text, 6379)]
    refusal = spoilt(case)
    assert refusal.code == "address-not-movable"
    assert words in refusal.message


def test_secondaries_that_stay() -> None:
    case = Case()
    found(case, "10.77.0.100").update(has_secondaries=True, promotes=True)
    assert len(moved(case)) == 1


def test_the_only_address_of_its_network_at_the_device_of_the_host() -> None:
    case = Case()
    case.source["addresses"] = [one for one in case.source["addresses"] if "100" not in str(one)]
    case.source["named"] = []
    case.process["connections"] = [established("fd77::11", "fd77::13")]
    case.process["listeners"] = []
    refusal = spoilt(case)
    assert refusal.code == "address-not-movable"
    assert "the only address of its network at eth0" in refusal.message


def test_a_device_of_its_own() -> None:
    case = Case()
    case.source["addresses"].append(address("10.88.0.1", 32, "vip0"))
    case.destination["addresses"].append(address("10.88.0.9", 24, "vip7"))
    case.process["connections"] = [established("10.88.0.1", "10.77.0.13")]
    case.process["listeners"] = []
    assert moved(case) == (Address("10.88.0.1", 32, 4, "vip0", "vip7"),)


def test_a_gateway_that_would_be_out_of_reach() -> None:
    case = Case()
    case.source["addresses"].append(address("192.0.2.5", 24, "eth1"))
    case.source["gateways"].append(["192.0.2.1", "eth1"])
    case.destination["addresses"].append(address("192.0.2.6", 24, "eth1"))
    case.process["connections"] = [established("192.0.2.5", "10.77.0.13")]
    case.process["listeners"] = []
    refusal = spoilt(case)
    assert refusal.code == "address-not-movable"
    assert "the gateway 192.0.2.1 depends on it" in refusal.message


def test_a_link_local_address() -> None:
    case = Case()
    case.process["connections"] = [established("fe80::1", "fe80::2")]
    refusal = spoilt(case)
    assert "link-local" in refusal.message


def test_the_same_device_is_preferred() -> None:
    case = Case()
    case.destination["addresses"].insert(2, address("10.77.0.14", device="dummy0"))
    assert moved(case)[0].destination_device == "eth0"
    found(case, "10.77.0.100")["device"] = "bond0"
    assert moved(case)[0].destination_device == "dummy0"


def test_someone_unknown_uses_it() -> None:
    case = Case()
    case.process["others"].append(other("10.77.0.100", pid=0))
    assert "also used by a socket of port 22, which stays on src" in spoilt(case).message

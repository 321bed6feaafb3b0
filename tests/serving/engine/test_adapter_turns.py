"""Adapters that take turns on the device: within its budget, in order, and none pauses for longer than is said."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings, strategies as st

from lorafleet_serving.engine.adapter_turns import PRIORITY_STEPS, AdapterTurns
from lorafleet_serving.engine.request import ANONYMOUS, GenerationRequest, Tenant
from lorafleet_serving.engine.sequence import Sequence

MOST_ADAPTERS = 8


class Device:
    """A budget of bytes."""

    def __init__(self, num_bytes: int, sizes: dict[str, int]) -> None:
        self.sizes = sizes
        self.held: set[str] = set()
        self._num_bytes = num_bytes

    def acquire(self, digest: str) -> bool:
        assert digest not in self.held, f"{digest} is held twice"
        if sum(self.sizes[held] for held in self.held) + self.sizes[digest] > self._num_bytes:
            return False
        self.held.add(digest)
        return True

    def release(self, digest: str) -> None:
        self.held.remove(digest)


class Batch:
    """Sequences that come and go, by the names of their adapters."""

    def __init__(self, device: Device, turn_steps: int) -> None:
        self.turns = AdapterTurns(device, turn_steps)
        self.sequences: dict[str, list[Sequence]] = defaultdict(list)
        self._num_entered = 0

    def enter(self, name: str, priority: int = 0, tenant: Tenant = ANONYMOUS) -> None:
        request = GenerationRequest(str(self._num_entered), (1,), adapter=name, tenant=tenant, priority=priority)
        self.sequences[name].append(Sequence(request, self._num_entered))
        self._num_entered += 1
        self.turns.enter(self.sequences[name][-1])

    def leave(self, name: str) -> None:
        if self.sequences[name]:
            self.turns.leave(self.sequences[name].pop())

    def step(self) -> None:
        self.turns.begin_step()
        self.turns.check_integrity(sequence for line in self.sequences.values() for sequence in line)

    def paused(self) -> list[str]:
        return [name for name, line in self.sequences.items() if line and not self.turns.has(name)]


def equal_turns(num_slots: int, turn_steps: int, names: str) -> tuple[Batch, Device]:
    device = Device(num_slots, dict.fromkeys(names, 1))
    return Batch(device, turn_steps), device


def test_those_that_fit_together_never_pause() -> None:
    batch, device = equal_turns(3, 1, "abc")
    for name in "abc":
        batch.enter(name)
    for _ in range(20):
        batch.step()
        assert device.held == set("abc")
    assert batch.turns.num_pauses == 0


def test_each_keeps_its_place_for_a_turn_and_gets_it_again() -> None:
    batch, device = equal_turns(2, 3, "abcd")
    for name in "abcd":
        batch.enter(name)
    seen = []
    for _ in range(12):
        batch.step()
        seen.append("".join(sorted(device.held)))
    assert seen == ["ab"] * 2 + ["cd"] * 3 + ["ab"] * 3 + ["cd"] * 3 + ["ab"]


def test_the_last_of_an_adapter_s_sequences_gives_its_place_back() -> None:
    batch, device = equal_turns(1, 100, "ab")
    for name in "aab":
        batch.enter(name)
    batch.leave("a")
    batch.step()
    assert device.held == {"a"}
    batch.leave("a")
    assert device.held == set()
    batch.step()
    assert device.held == {"b"}


def test_one_that_leaves_while_it_waits_is_forgotten() -> None:
    batch, device = equal_turns(1, 1, "abc")
    for name in "abc":
        batch.enter(name)
    batch.leave("b")
    batch.step()
    assert device.held == {"c"}


def test_none_is_let_past_one_that_needs_more_room() -> None:
    device = Device(4, {"small-1": 2, "small-2": 2, "small-3": 2, "large": 4})
    batch = Batch(device, 2)
    for name in ("small-1", "small-2", "large", "small-3"):
        batch.enter(name)
    seen = []
    for _ in range(5):
        batch.step()
        seen.append(set(device.held))
    assert {"large"} in seen
    assert all("small-3" not in held for held in seen[: seen.index({"large"})])


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=MOST_ADAPTERS),
    spare=st.integers(0, 8),
    turn_steps=st.integers(1, 4),
    events=st.lists(st.tuples(st.booleans(), st.integers(0, MOST_ADAPTERS - 1), st.integers(0, 3)), max_size=60),
)
def test_nobody_pauses_longer_than_is_said(
    sizes: list[int], spare: int, turn_steps: int, events: list[tuple[bool, int, int]]
) -> None:
    names = [f"adapter-{number}" for number in range(len(sizes))]
    device = Device(max(sizes) + spare, dict(zip(names, sizes, strict=True)))
    batch = Batch(device, turn_steps)
    most_steps = math.ceil(len(sizes) / ((max(sizes) + spare) // max(sizes))) * turn_steps
    paused: Counter[str] = Counter()
    for joins, number, num_steps in [*events, (True, 0, 2 * most_steps)]:
        name = names[number % len(names)]
        (batch.enter if joins else batch.leave)(name)
        for _ in range(num_steps):
            batch.step()
            paused = Counter({name: paused[name] + 1 for name in batch.paused()})
            assert max(paused.values(), default=0) <= most_steps, f"paused for {paused}, said were {most_steps}"


TENANTS = [Tenant("one"), Tenant("two", 2.0), Tenant("half", 0.5)]


@settings(deadline=None)
@given(
    num_slots=st.integers(1, 4),
    turn_steps=st.integers(1, 4),
    events=st.lists(
        st.tuples(st.booleans(), st.integers(0, MOST_ADAPTERS - 1), st.sampled_from(TENANTS), st.integers(0, 6)),
        max_size=60,
    ),
)
def test_nobody_pauses_for_as_long_as_another_tenant_likes(
    num_slots: int, turn_steps: int, events: list[tuple[bool, int, Tenant, int]]
) -> None:
    """Tenants with adapters of their own come and go, and compute or not as they like: nothing is told of that."""
    names = [f"{tenant.name}-{number}" for tenant in TENANTS for number in range(MOST_ADAPTERS)]
    batch = Batch(Device(num_slots, dict.fromkeys(names, 1)), turn_steps)
    # A tenant has a sixth of the device at least, by its weight, while its adapters take turns; and gives back what it
    # had more, for all of a turn, before.
    most_steps = 8 * (MOST_ADAPTERS + num_slots) * (turn_steps + 1)
    paused: Counter[str] = Counter()
    for joins, number, tenant, num_steps in [*events, (True, 0, TENANTS[0], 2 * most_steps)]:
        name = f"{tenant.name}-{number}"
        if joins:
            batch.enter(name, tenant=tenant)
        else:
            batch.leave(name)
        for _ in range(num_steps):
            batch.step()
            paused = Counter({name: paused[name] + 1 for name in batch.paused()})
            assert max(paused.values(), default=0) <= most_steps


def test_tenants_have_the_device_by_weight() -> None:
    names = [f"{tenant.name}-{number}" for tenant in TENANTS for number in range(5)]
    device = Device(2, dict.fromkeys(names, 1))
    batch = Batch(device, 3)
    for name in names:
        batch.enter(name, tenant=next(tenant for tenant in TENANTS if name.startswith(tenant.name)))
    had: Counter[str] = Counter()
    for _ in range(1000):
        batch.step()
        had += Counter(name.partition("-")[0] for name in device.held)
    assert had["two"] / had["one"] == pytest.approx(2.0, rel=0.1)
    assert had["one"] / had["half"] == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("num_steps", [1, 3, 50])
def test_weights_hold_however_short_requests_are(num_steps: int) -> None:
    """A tenant of ten times the weight always has four sequences, which come and go while it has the place."""
    heavy, light = Tenant("heavy", 10.0), Tenant("light")
    batch, device = equal_turns(1, 8, "hl")
    batch.enter("l", tenant=light)
    for _ in range(4):
        batch.enter("h", tenant=heavy)
    had: Counter[str] = Counter()
    for step in range(4000):
        batch.step()
        had += Counter(device.held)
        if "h" in device.held and step % num_steps == 0:
            batch.enter("h", tenant=heavy)
            batch.leave("h")
    assert had["h"] / had["l"] == pytest.approx(10.0, rel=0.2)


def test_who_asked_for_little_does_not_have_all_of_the_device_for_as_long_later() -> None:
    """One tenant has one place for long, while two others take turns at the other; then it asks for more."""
    names = ["modest-0", "modest-1", *(f"{name}-{number}" for name in ("b", "c") for number in range(4))]
    device = Device(2, dict.fromkeys(names, 1))
    batch = Batch(device, 4)
    batch.enter("modest-0", tenant=Tenant("modest"))
    for name in names[2:]:
        batch.enter(name, tenant=Tenant(name[0]))
    for _ in range(1000):
        batch.step()
    batch.enter("modest-1", tenant=Tenant("modest"))
    had: Counter[str] = Counter()
    for _ in range(100):
        batch.step()
        had += Counter(name.partition("-")[0] for name in device.held)
    assert had["modest"] <= 100


def test_a_higher_priority_waits_less_and_a_lower_one_not_for_ever() -> None:
    device = Device(1, dict.fromkeys("abcd", 1))
    batch = Batch(device, 1)
    for name in "abc":
        batch.enter(name)
    batch.enter("d", priority=1)
    seen: list[str] = []
    for _ in range(4 * PRIORITY_STEPS):
        batch.step()
        seen += device.held
    assert seen[0] == "d"
    assert seen.count("d") > seen.count("a")
    assert min(seen.count(name) for name in "abc") >= 2

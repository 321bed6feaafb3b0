"""The host tier: within its budget whatever happens, never without what is held, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack

import pytest
from hypothesis import given, settings, strategies as st

from lorafleet_serving.adapters.eviction import EvictionOrder, EvictionPolicy
from lorafleet_serving.adapters.host import AdapterFiles, HostTier
from lorafleet_serving.exceptions import AnswerLost, FetchFailed, NoRoom
from tests.serving.adapters.memory_engine import MemoryEngine

BUDGET = 10
_LIMIT_S = 30.0
_MANY = 40
"""More loads than may ever pass one that waits."""


class Bench:
    """A tier whose adapters are named by their sizes, and who holds them."""

    def __init__(
        self, room_limit_s: float = _LIMIT_S, told: Callable[[int], int] = lambda size: size, **sizes: int
    ) -> None:
        self.sizes = sizes
        self._told = told
        self.engine = MemoryEngine(sizes, BUDGET)
        self.tier = HostTier(self.engine, BUDGET, EvictionOrder(EvictionPolicy.LRU), room_limit_s=room_limit_s)
        self.num_brought = 0
        self.on_disk = asyncio.Event()
        self.on_disk.set()

    async def bring(self, digest: str) -> AdapterFiles:
        self.num_brought += 1
        await self.on_disk.wait()
        return AdapterFiles(digest, self._told(self.sizes[digest]))

    async def hold(self, digest: str) -> ExitStack:
        """Ask for an adapter; closing what is returned gives it back."""
        with ExitStack() as held:
            held.enter_context(self.tier.lease(digest))
            await self.tier.load(digest, lambda: self.bring(digest))
            return held.pop_all()

    async def use(self, *digests: str) -> None:
        for digest in digests:
            (await self.hold(digest)).close()


async def _settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_least_recently_used_leaves_when_another_needs_the_room() -> None:
    bench = Bench(a=4, b=4, c=4)
    await bench.use("a", "b", "a", "c")
    assert set(bench.engine.loaded) == {"a", "c"}
    assert bench.tier.counts.evictions == 1
    assert (bench.tier.counts.hits, bench.tier.counts.misses) == (1, 3)
    assert bench.tier.counts.loads.keys() == {"disk"}
    assert bench.tier.counts.num_loads == 3


async def test_what_is_held_or_pinned_stays() -> None:
    bench = Bench(a=3, b=3, c=3, d=3)
    held = await bench.hold("a")
    await bench.use("b", "c")
    bench.tier.pin(["b"])
    await bench.use("d")
    assert set(bench.engine.loaded) == {"a", "b", "d"}
    held.close()
    await bench.use("c")
    assert set(bench.engine.loaded) == {"b", "c", "d"}


async def test_pins_take_half_of_the_tier_at_most() -> None:
    bench = Bench(a=3, b=3, c=3)
    await bench.use("a", "b", "c")
    bench.tier.pin(["c", "b", "a"])
    assert bench.tier.pinned == {"c"}


async def test_who_asks_for_the_same_waits_for_one_load_and_may_leave() -> None:
    bench = Bench(a=4)
    bench.engine.allowed.clear()
    asking = [asyncio.create_task(bench.hold("a")) for _ in range(5)]
    await _settle()
    asking[0].cancel()
    await _settle()
    bench.engine.allowed.set()
    for held in await asyncio.gather(*asking[1:]):
        held.close()
    assert (bench.num_brought, bench.engine.num_loads) == (1, 1)
    assert bench.tier.num_leases("a") == 0


async def test_who_asks_in_the_moment_in_which_it_comes_gets_it_too() -> None:
    bench = Bench(a=4)
    bench.engine.allowed.clear()
    asking = [asyncio.create_task(bench.hold("a"))]
    await _settle()
    bench.engine.allowed.set()
    while not bench.tier.holds("a"):
        asking.append(asyncio.create_task(bench.hold("a")))
        await asyncio.sleep(0)
    asking.append(asyncio.create_task(bench.hold("a")))
    for held in await asyncio.gather(*asking):
        held.close()


async def test_one_that_finds_no_room_waits_until_something_is_given_back() -> None:
    bench = Bench(a=6, b=6)
    held = await bench.hold("a")
    asking = asyncio.create_task(bench.hold("b"))
    await _settle()
    assert not asking.done()
    held.close()
    (await asyncio.wait_for(asking, _LIMIT_S)).close()
    assert set(bench.engine.loaded) == {"b"}
    assert bench.tier.counts.waits_for_room == 1


async def test_small_ones_are_let_past_one_that_finds_no_room_and_not_for_ever() -> None:
    small = {f"small-{number}": 1 for number in range(40)}
    bench = Bench(held=7, large=9)
    bench.sizes |= small
    held = await bench.hold("held")
    large = asyncio.create_task(bench.hold("large"))
    await _settle()
    later = [asyncio.create_task(bench.use(name)) for name in small]
    for _ in range(40):
        await _settle()
    num_past = sum(task.done() for task in later)
    assert 0 < num_past < len(small)
    held.close()
    (await asyncio.wait_for(large, _LIMIT_S)).close()
    await asyncio.wait_for(asyncio.gather(*later), _LIMIT_S)


async def test_one_that_nobody_asks_for_any_more_waits_no_longer() -> None:
    bench = Bench(held=7, large=9)
    with await bench.hold("held"):
        asking = asyncio.create_task(bench.hold("large"))
        await _settle()
        asking.cancel()
        await _settle()
        await _settle()
        assert set(bench.engine.loaded) == {"held"}
        again = asyncio.create_task(bench.hold("large"))
        await _settle()
        assert bench.num_brought == 3, "the load that nobody asked for is still under way"
    (await asyncio.wait_for(again, _LIMIT_S)).close()


async def test_one_that_gives_up_is_not_taken_for_another_that_waits_for_as_much() -> None:
    bench = Bench(held=7, x=5, y=5, z=2)
    with await bench.hold("held"):
        staying, leaving = [asyncio.create_task(bench.hold(name)) for name in "xy"]
        await _settle()
        leaving.cancel()
        await _settle()
        await bench.use("z")
        await _settle()
        bench.tier.check_integrity()
        assert not staying.done()
    (await asyncio.wait_for(staying, _LIMIT_S)).close()
    await asyncio.wait_for(_load_many(bench, "z"), _LIMIT_S)


async def test_nothing_is_evicted_for_one_that_nobody_asks_for_any_more_when_it_is_on_disk() -> None:
    bench = Bench(a=4, b=4, c=4, d=2)
    await bench.use("a", "b")
    bench.on_disk.clear()
    asking = [asyncio.create_task(bench.hold(name)) for name in "cd"]
    await _settle()
    for task in asking:
        task.cancel()
    await _settle()
    bench.on_disk.set()
    await _settle()
    # What is brought already, and fits, may stay.
    assert set(bench.engine.loaded) == {"a", "b", "d"}
    bench.tier.check_integrity()
    await bench.use("c")


@pytest.mark.parametrize("num_moments", range(8))
async def test_who_asks_in_the_moment_in_which_a_load_gives_up_is_not_told_so(num_moments: int) -> None:
    bench = Bench(held=7, large=9)
    with await bench.hold("held"):
        leaving = asyncio.create_task(bench.hold("large"))
        await _settle()
        leaving.cancel()
        for _ in range(num_moments):
            await asyncio.sleep(0)
        asking = asyncio.create_task(bench.hold("large"))
        await _settle()
        bench.tier.check_integrity()
        assert not asking.done()
    (await asyncio.wait_for(asking, _LIMIT_S)).close()


async def test_nothing_is_evicted_for_one_that_would_not_fit_even_so() -> None:
    bench = Bench(room_limit_s=0.05, a=5, b=3, c=8)
    with await bench.hold("a"):
        await bench.use("b")
        with pytest.raises(NoRoom, match="--adapter-host-bytes"):
            await bench.use("c")
        assert set(bench.engine.loaded) == {"a", "b"}


async def test_one_that_is_larger_than_its_files_told_gets_its_room_too() -> None:
    bench = Bench(told=lambda size: size // 2, a=4, b=4, c=8)
    await bench.use("a", "b", "c")
    assert set(bench.engine.loaded) == {"c"}


async def test_one_that_seems_larger_than_the_tier_and_is_not_is_taken() -> None:
    bench = Bench(told=lambda size: size * 4, a=4, b=8)
    await bench.use("a", "b")
    assert set(bench.engine.loaded) == {"b"}


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    bench = Bench(a=4)

    async def fail() -> AdapterFiles:
        raise FetchFailed("S3 is away")

    with bench.tier.lease("a"):
        results = await asyncio.gather(*(bench.tier.load("a", fail) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [FetchFailed] * 3
    await bench.use("a")


async def test_what_was_lost_is_told_and_comes_back_when_it_is_asked_for() -> None:
    bench = Bench(a=4, b=4)
    await bench.use("a", "b")
    bench.engine.die()
    assert bench.tier.engine_down() == ["b", "a"]
    assert not bench.tier.holds("a")
    await bench.use("a")
    assert set(bench.engine.loaded) == {"a"}


async def test_a_load_that_the_engine_does_not_survive_fails_and_can_be_asked_for_again() -> None:
    bench = Bench(a=4)
    bench.engine.allowed.clear()
    asking = asyncio.create_task(bench.hold("a"))
    await _settle()
    bench.engine.die()
    bench.tier.engine_down()
    bench.engine.allowed.set()
    with pytest.raises(AnswerLost):
        await asking
    await bench.use("a")


async def test_one_that_is_held_or_on_its_way_is_not_let_go() -> None:
    bench = Bench(a=4, b=4)
    with await bench.hold("a"):
        assert not bench.tier.evict("a")
    bench.engine.allowed.clear()
    asking = asyncio.create_task(bench.hold("b"))
    await _settle()
    assert not bench.tier.evict("b")
    bench.engine.allowed.set()
    (await asking).close()
    assert bench.tier.evict("a")
    assert bench.tier.evict("b")
    assert not bench.engine.loaded


_OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("abcdef")),
        st.tuples(st.just("give back"), st.integers(0, 5)),
        st.tuples(st.just("pin"), st.sampled_from(["", "a", "ab", "fed"])),
        st.tuples(st.just("hold up"), st.booleans()),
        st.tuples(st.just("die"), st.none()),
    ),
    max_size=40,
)


# Those of the second kind are so large that all but one wait, and for as much.
_SIZES = st.sampled_from([(1, 2, 3, 4, 5, 9), (2, 6, 6, 6, 6, 6)])
_FIRST = st.sampled_from(["", "bcdef"]).map(lambda digests: [("ask", digest) for digest in digests])


@settings(max_examples=200)
@given(
    first=_FIRST,
    operations=_OPERATIONS,
    sizes=_SIZES,
    policy=st.sampled_from(EvictionPolicy),
    wrong=st.sampled_from([1, 2, 3]),
)
def test_budget_and_holds_are_kept_whatever_happens(
    first: list[tuple[str, object]],
    operations: list[tuple[str, object]],
    sizes: tuple[int, ...],
    policy: EvictionPolicy,
    wrong: int,
) -> None:
    asyncio.run(_run([*first, *operations], sizes, policy, wrong))


async def _run(
    operations: list[tuple[str, object]], given_sizes: tuple[int, ...], policy: EvictionPolicy, wrong: int
) -> None:
    sizes = dict(zip("abcdef", given_sizes, strict=True))
    bench = Bench(told=lambda size: max(1, size * wrong // 2), **sizes)
    bench.tier = tier = HostTier(bench.engine, BUDGET, EvictionOrder(policy), room_limit_s=_LIMIT_S)
    asking: list[asyncio.Task[ExitStack]] = []
    for operation, argument in operations:
        match operation, argument:
            case "ask", str(digest):
                asking.append(asyncio.create_task(bench.hold(digest), name=digest))
            case "give back", int(place) if place < len(asking):
                _give_back(asking.pop(place))
            case "pin", str(digests):
                tier.pin(list(digests))
            case "hold up", bool(held_up):
                (bench.engine.allowed.clear if held_up else bench.engine.allowed.set)()
            case "die", None:
                bench.engine.die()
                tier.engine_down()
                # Those who held something hold it no more.
                for task in filter(asyncio.Task.done, asking):
                    _give_back(task)
                asking = [task for task in asking if not task.done()]
        await _settle()
        tier.check_integrity()
        assert all(_has(task, tier) for task in asking)
    bench.engine.allowed.set()
    tier.pin([])
    while asking:
        done, _ = await asyncio.wait(asking, timeout=_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        assert done, "somebody waits although nobody holds anything"
        for task in done:
            asking.remove(task)
            _give_back(task)
    await _settle()
    tier.check_integrity()
    assert not any(map(tier.num_leases, sizes))
    await asyncio.wait_for(_load_many(bench, "a"), _LIMIT_S)


async def _load_many(bench: Bench, digest: str) -> None:
    """Load one again and again, which whoever still waited would not allow."""
    for _ in range(_MANY):
        bench.tier.evict(digest)
        await bench.use(digest)


def _has(task: asyncio.Task[ExitStack], tier: HostTier) -> bool:
    return not task.done() or _held(task) is None or tier.holds(task.get_name())


def _give_back(task: asyncio.Task[ExitStack]) -> None:
    if not task.done():
        task.cancel()
    elif (held := _held(task)) is not None:
        held.close()


def _held(task: asyncio.Task[ExitStack]) -> ExitStack | None:
    """What one got that has ended; None where the engine died meanwhile: nobody holds anything for so long that one
    would be told that there is no room."""
    error = task.exception()
    assert error is None or isinstance(error, AnswerLost), repr(error)
    return task.result() if error is None else None

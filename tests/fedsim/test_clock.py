import pytest

from fedsim.clock import Clock, LateClock, MilestoneClock, StaggeredClock, Tick


def row(clock, client=None):
    return [clock.at(r, client) for r in range(1, clock.num_rounds + 1)]


def test_boundaries_by_hand():
    clock = Clock(num_experiences=2, rounds_per_experience=[2, 3])
    assert clock.num_rounds == 5
    assert row(clock) == [
        Tick(1, 0, 0, True, False),
        Tick(2, 0, 1, False, True),
        Tick(3, 1, 0, True, False),
        Tick(4, 1, 1, False, False),
        Tick(5, 1, 2, False, True),
    ]
    assert row(clock, client=7) == row(clock)
    assert clock.joins(7) == 1


def test_an_experience_of_one_round_is_first_and_last():
    clock = Clock(num_experiences=3, rounds_per_experience=1)
    assert [(t.experience, t.is_first, t.is_last) for t in row(clock)] == [
        (0, True, True),
        (1, True, True),
        (2, True, True),
    ]


def test_evaluation_falls_on_the_ends_and_every_so_many_rounds():
    ends = Clock(num_experiences=2, rounds_per_experience=[2, 5])
    assert [r for r in range(1, 8) if ends.evaluates(r)] == [2, 7]
    often = Clock(num_experiences=2, rounds_per_experience=[2, 5], evaluate_every=3)
    assert [r for r in range(1, 8) if often.evaluates(r)] == [2, 3, 6, 7]


def test_staggered_client_by_hand():
    clock = StaggeredClock(num_experiences=2, rounds_per_experience=3, max_shift=2, seed=0)
    client = next(c for c in range(100) if clock.shift(c) == 1)
    assert [(t.experience, t.step, t.is_first, t.is_last) for t in row(clock, client)] == [
        (0, 0, True, False),
        (0, 1, False, False),
        (0, 2, False, False),
        (0, 3, False, True),
        (1, 0, True, False),
        (1, 1, False, True),
    ]
    synchronous = Clock(num_experiences=2, rounds_per_experience=3)
    assert row(clock) == row(synchronous)  # the server's own time
    assert {clock.shift(c) for c in range(100)} == {0, 1, 2}


def test_staggered_clock_without_shift_is_the_plain_one():
    clock = StaggeredClock(num_experiences=2, rounds_per_experience=3, max_shift=0, seed=0)
    assert row(clock, 5) == row(Clock(num_experiences=2, rounds_per_experience=3))


def test_late_client_by_hand():
    clock = LateClock(
        num_experiences=2, rounds_per_experience=3, late_fraction=1.0, latest_join=5, seed=0
    )
    early = next(c for c in range(100) if clock.joins(c) == 2)
    assert [(t.experience, t.step, t.is_first, t.is_last) for t in row(clock, early)] == [
        (-1, 0, False, False),
        (0, 0, True, False),
        (0, 1, False, True),
        (1, 0, True, False),
        (1, 1, False, False),
        (1, 2, False, True),
    ]
    skips = next(c for c in range(100) if clock.joins(c) == 5)
    assert [(t.experience, t.step, t.is_first) for t in row(clock, skips)][4:] == [
        (1, 0, True),
        (1, 1, False),
    ]
    assert {clock.joins(c) for c in range(100)} == {2, 3, 4, 5}


def test_share_of_late_clients_is_as_asked():
    options = {"num_experiences": 2, "rounds_per_experience": 5, "latest_join": 10, "seed": 1}
    late = LateClock(late_fraction=0.3, **options)
    share = sum(late.joins(c) > 1 for c in range(2000)) / 2000
    assert 0.26 < share < 0.34
    assert all(LateClock(late_fraction=0.0, **options).joins(c) == 1 for c in range(50))


CLOCKS = [
    Clock(num_experiences=4, rounds_per_experience=[3, 1, 5, 2]),
    StaggeredClock(num_experiences=4, rounds_per_experience=[4, 3, 5, 3], max_shift=2, seed=3),
    LateClock(
        num_experiences=4,
        rounds_per_experience=[3, 1, 5, 2],
        late_fraction=0.7,
        latest_join=11,
        seed=3,
    ),
]


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("client", [None, *range(40)])
def test_time_moves_forward_for_everybody(clock, client):
    ticks = row(clock, client)
    joined = [t for t in ticks if t.experience >= 0]
    waiting = ticks[: len(ticks) - len(joined)]
    first_round = 1 if client is None else clock.joins(client)
    assert [t.round for t in ticks] == list(range(1, clock.num_rounds + 1))
    assert joined[0].round == first_round
    assert all(not t.is_first and not t.is_last and t.experience == -1 for t in waiting)
    visited = [t.experience for t in joined]
    assert visited == sorted(visited)
    assert visited[-1] == 3
    for experience in set(visited):
        stay = [t for t in joined if t.experience == experience]
        assert [t.step for t in stay] == list(range(len(stay)))
        assert [t.is_first for t in stay] == [True] + [False] * (len(stay) - 1)
        assert [t.is_last for t in stay] == [False] * (len(stay) - 1) + [True]
    if not isinstance(clock, LateClock):
        assert set(visited) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clock(num_experiences=0, rounds_per_experience=1), "num_experiences"),
        (lambda: Clock(num_experiences=1, rounds_per_experience=0), "at least 1"),
        (lambda: Clock(num_experiences=2, rounds_per_experience=[1]), "1 entries for 2"),
        (
            lambda: Clock(num_experiences=1, rounds_per_experience=1, evaluate_every=-1),
            "evaluate_every",
        ),
        (
            lambda: StaggeredClock(
                num_experiences=2, rounds_per_experience=[5, 3], max_shift=3, seed=0
            ),
            r"max_shift must lie in \[0, 2\]",
        ),
        (
            lambda: LateClock(
                num_experiences=1,
                rounds_per_experience=5,
                late_fraction=0.1,
                latest_join=6,
                seed=0,
            ),
            r"latest_join must lie in \[2, 5\], got 6",
        ),
        (
            lambda: LateClock(
                num_experiences=1,
                rounds_per_experience=5,
                late_fraction=1.1,
                latest_join=2,
                seed=0,
            ),
            "late_fraction",
        ),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("round_", [0, 6])
def test_rounds_outside_the_run_are_an_error(round_):
    with pytest.raises(ValueError, match=r"round must lie in \[1, 5\]"):
        Clock(num_experiences=1, rounds_per_experience=5).at(round_)


def test_milestones_choose_when_to_evaluate():
    clock = MilestoneClock(num_experiences=5, rounds_per_experience=2, milestones=[1, 3, 9])
    assert [r for r in range(1, 11) if clock.evaluates(r)] == [2, 6, 10]
    often = MilestoneClock(
        num_experiences=2, rounds_per_experience=2, milestones=[], evaluate_every=3
    )
    assert [r for r in range(1, 5) if often.evaluates(r)] == [3, 4]
    with pytest.raises(ValueError, match="from 1"):
        MilestoneClock(num_experiences=2, rounds_per_experience=1, milestones=[0])

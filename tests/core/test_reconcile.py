from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.reconcile import SeenContainer, SeenLease, reconcile

ANA, BO = ("ana", ""), ("bo", "")


def lease(number: int, server: tuple[str, str]) -> SeenLease:
    return SeenLease(f"l{number}", f"s{number}", server, (f"GPU-{number}",))


def container(number: int, server: tuple[str, str], *, is_running: bool = True) -> SeenContainer:
    return SeenContainer(
        f"c{number}", f"s{number}", f"l{number}", server, (f"GPU-{number}",), is_running
    )


def test_agreement_asks_for_nothing() -> None:
    assert reconcile([lease(1, ANA)], [container(1, ANA)], [("s1", ANA)], {ANA}).is_nothing


def test_a_start_that_has_no_container_yet_keeps_its_lease() -> None:
    assert reconcile([lease(1, ANA)], [], [("s1", ANA)], {ANA}).is_nothing


def test_a_server_that_is_over_loses_container_lease_and_start() -> None:
    done = reconcile([lease(1, ANA)], [container(1, ANA)], [("s1", ANA)], {BO})
    assert [seen.id for seen in done.remove] == ["c1"]
    assert [seen.id for seen in done.release] == ["l1"]
    assert done.close == ("s1",)


def test_a_lost_lease_is_adopted_from_labels() -> None:
    done = reconcile([], [container(1, ANA)], [], {ANA})
    assert [seen.lease_id for seen in done.adopt] == ["l1"]


def test_a_container_that_does_not_run_is_not_adopted() -> None:
    assert reconcile([], [container(1, ANA, is_running=False)], [], {ANA}).adopt == ()


def test_an_older_lease_of_a_server_that_runs_under_a_newer_one_is_released() -> None:
    done = reconcile([lease(1, ANA), lease(2, ANA)], [container(2, ANA)], [("s2", ANA)], {ANA})
    assert [seen.id for seen in done.release] == ["l1"]


def test_a_start_under_way_keeps_its_lease_beside_an_older_container() -> None:
    """The engine was away, so the old container could not be removed; the student starts again."""
    done = reconcile([lease(2, ANA)], [container(1, ANA)], [("s2", ANA)], {ANA})
    assert done.release == ()


servers = st.sampled_from([ANA, BO, ("eve", "x")])


@given(
    st.lists(st.builds(lease, st.integers(0, 5), servers), unique_by=lambda seen: seen.id),
    st.lists(
        st.builds(container, st.integers(0, 5), servers, is_running=st.booleans()),
        # A server has one container: its name is made of the server's.
        unique_by=(lambda seen: seen.id, lambda seen: seen.server),
    ),
    st.sets(servers),
)
def test_after_it_is_carried_out_nothing_is_left_to_do(
    leases: list, containers: list, active: set
) -> None:
    done = reconcile(leases, containers, [], active)
    left = [seen for seen in containers if seen not in done.remove]
    held = [seen for seen in leases if seen not in done.release]
    held += [SeenLease(c.lease_id, c.start_id, c.server, c.gpus) for c in done.adopt]
    again = reconcile(held, left, [], active)
    assert again.remove == ()
    assert again.adopt == ()
    assert all(seen.server in active for seen in left)

"""Grants, the admin's decisions about devices, the inventory, and the log of who changed what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory, build_gpu
from pytorch_spawner.core.grant_rows import conflicts
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import DeviceSetting
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.ledger.database import Database
from pytorch_spawner.ledger.models import (
    ChangeRow,
    CounterRow,
    DeviceRow,
    DeviceSettingRow,
    GrantRow,
    LeaseRow,
)


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the audit log; ``before`` and ``after`` are JSON, or None."""

    id: int
    at: float
    by: str
    what: str
    subject: str
    before: Any
    after: Any


class Granting(Database):
    """The part of the ledger about what admins decide."""

    # -- grants -----------------------------------------------------------------------------

    def grants(self, hub: str) -> tuple[Grant, ...]:
        """Return the grants of a hub, by id."""
        with self._reading() as session:
            return self._grants(session, hub)

    def _grants(self, session: Session, hub: str) -> tuple[Grant, ...]:
        rows = session.execute(
            select(GrantRow.spec).where(GrantRow.hub == hub).order_by(GrantRow.id)
        )
        return tuple(_grant(spec) for (spec,) in rows)

    def write_grants(
        self, hub: str, grants: Sequence[Grant], by: str, *, source: str = "ledger"
    ) -> None:
        """Replace all grants of one source; see ``change_grants``."""
        self.change_grants(hub, by, lambda _: grants, source=source)

    def change_grants(
        self,
        hub: str,
        by: str,
        change: Callable[[tuple[Grant, ...]], Sequence[Grant]],
        *,
        source: str = "ledger",
    ) -> tuple[Grant, ...]:
        """Change the grants of one source in one transaction.

        Args:
            hub: Id of the hub.
            by: Who changes them; what differs goes into the audit log under this name, every line
                of one change with the same time.
            change: Takes the grants of that source as they are, returns them as they shall be.
            source: Grants of other sources stay.

        Returns:
            The grants of that source as they are now.

        Raises:
            BadRequest: Another source has a grant of one of these ids, or pins one of these GPUs to
                somebody else; nothing was written.
        """
        with self._transaction() as session:
            known = self._grants(session, hub)
            before = {grant.id: grant for grant in known if grant.source == source}
            others = {grant.id: grant for grant in known if grant.source != source}
            after = {grant.id: grant for grant in change(tuple(before.values()))}
            # The hub's own word (configuration, groups) is written down in any case; an admin who
            # contradicts it is told.
            faults = conflicts([*others.values(), *after.values()]) if source == "ledger" else []
            faults += [
                f"the {others[one].source} has a grant {one}" for one in others if one in after
            ]
            if faults:
                raise BadRequest(
                    "The grants contradict others: " + "; ".join(faults) + ".", faults=faults
                )
            at = self._moment(session, hub)
            for grant_id in sorted({*before, *after}):
                self._change_grant(session, hub, by, at, before.get(grant_id), after.get(grant_id))
            return tuple(after.values())

    def _change_grant(
        self, session: Session, hub: str, by: str, at: float, old: Grant | None, new: Grant | None
    ) -> None:
        either = new or old
        if old == new or either is None:
            return
        before, after = (None if one is None else one.as_json() for one in (old, new))
        self._note(session, hub, by, "grant", either.id, before, after, at)
        if new is None:
            session.execute(delete(GrantRow).where(GrantRow.hub == hub, GrantRow.id == either.id))
            return
        row = session.get(GrantRow, (hub, new.id)) or GrantRow(hub=hub, id=new.id)
        row.spec, row.at = asdict(new), at
        if new.valid_until is not None:
            # Whoever holds something through it holds it until then at the latest.
            longer = or_(LeaseRow.until.is_(None), LeaseRow.until > new.valid_until)
            session.execute(
                update(LeaseRow)
                .where(LeaseRow.hub == hub, LeaseRow.grant_id == new.id, longer)
                .where(LeaseRow.released_at.is_(None))
                .values(until=new.valid_until)
            )
        session.add(row)

    # -- devices ----------------------------------------------------------------------------

    def settings(self, hub: str) -> tuple[DeviceSetting, ...]:
        """Return the admin's decisions about devices."""
        with self._reading() as session:
            return self._settings(session, hub)

    def _settings(self, session: Session, hub: str) -> tuple[DeviceSetting, ...]:
        rows = session.scalars(
            select(DeviceSettingRow)
            .where(DeviceSettingRow.hub == hub)
            .order_by(DeviceSettingRow.uuid)
        )
        return tuple(
            DeviceSetting(GpuUuid(row.uuid), row.pool, row.mode, row.drained) for row in rows
        )

    def change_setting(
        self, hub: str, uuid: GpuUuid, by: str, change: Callable[[DeviceSetting], DeviceSetting]
    ) -> DeviceSetting:
        """Change what is decided about a device in one transaction; returns what is now."""
        with self._transaction() as session:
            row = session.get(DeviceSettingRow, (hub, uuid))
            was = DeviceSetting(uuid)
            if row is None:
                row = DeviceSettingRow(hub=hub, uuid=uuid)
            else:
                was = DeviceSetting(uuid, row.pool, row.mode, row.drained)
            now = change(was)
            now = replace(now, drained=now.drained[:255])
            if now != was:
                row.pool, row.mode, row.drained = now.pool, now.mode, now.drained
                row.at = self.now()
                session.add(row)
                before, after = (
                    {"pool": one.pool, "mode": one.mode, "drained": one.drained}
                    for one in (was, now)
                )
                self._note(session, hub, by, "gpu", uuid, before, after)
            return now

    # -- inventory --------------------------------------------------------------------------

    def write_inventory(self, hub: str, inventory: Inventory) -> None:
        """Replace what is known of a hub's GPUs."""
        with self._transaction() as session:
            session.execute(delete(DeviceRow).where(DeviceRow.hub == hub))
            for gpu in inventory.gpus:
                facts = {key: value for key, value in asdict(gpu).items() if key != "uuid"}
                session.add(DeviceRow(hub=hub, uuid=gpu.uuid, facts=facts, seen_at=self.now()))

    def read_inventory(self, hub: str) -> Inventory:
        """Return a hub's GPUs as it saw them last, in index order."""
        with self._reading() as session:
            rows = session.scalars(select(DeviceRow).where(DeviceRow.hub == hub)).all()
            gpus = [_gpu(row) for row in rows]
        gpus.sort(key=lambda gpu: (gpu.index, gpu.uuid))
        return Inventory(tuple(gpus), "" if gpus else "The hub has seen no GPU.")

    # -- the log ----------------------------------------------------------------------------

    def _note(  # noqa: PLR0913  (a line of the log has these fields)
        self,
        session: Session,
        hub: str,
        by: str,
        what: str,
        subject: str,
        before: Any,
        after: Any,
        at: float | None = None,
    ) -> None:
        session.add(
            ChangeRow(
                hub=hub,
                at=self._moment(session, hub) if at is None else at,
                by=by[:255],
                what=what,
                subject=subject[:255],
                before=before,
                after=after,
            )
        )
        self._count_up(session, hub, "version")

    def changes(self, hub: str, limit: int = 100) -> tuple[Change, ...]:
        """Return the audit log, the newest first."""
        with self._reading() as session:
            rows = session.scalars(
                select(ChangeRow)
                .where(ChangeRow.hub == hub)
                .order_by(ChangeRow.id.desc())
                .limit(limit)
            )
            return tuple(
                Change(row.id, row.at, row.by, row.what, row.subject, row.before, row.after)
                for row in rows
            )

    def version(self, hub: str) -> int:
        """A number that grows whenever something a decision depends on is written."""
        with self._reading() as session:
            row = session.get(CounterRow, (hub, "version"))
            return int(row.value) if row is not None else 0


def _grant(spec: dict[str, Any]) -> Grant:
    return Grant(**{**spec, "gpus": tuple(spec["gpus"]), "images": tuple(spec["images"])})


def _gpu(row: DeviceRow) -> Gpu:
    return build_gpu(int(row.facts.get("index", 0)), {"uuid": row.uuid, **row.facts})

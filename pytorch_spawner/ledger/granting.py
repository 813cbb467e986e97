"""Grants, the admin's decisions about devices, the inventory, and the log of who changed what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory, build_gpu
from pytorch_spawner.core.grant_rows import conflicts
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import DeviceSetting
from pytorch_spawner.errors import BadRequest, Problem
from pytorch_spawner.ledger.log import Log
from pytorch_spawner.ledger.models import (
    DeviceRow,
    DeviceSettingRow,
    GrantRow,
    InventoryRow,
    LeaseRow,
)


class Granting(Log):
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
        """Change the grants of one source; returns them as they are now. See ``edit_grants``."""
        return self.edit_grants(hub, by, change, source=source)[0]

    def edit_grants(
        self,
        hub: str,
        by: str,
        change: Callable[[tuple[Grant, ...]], Sequence[Grant]],
        *,
        source: str = "ledger",
    ) -> tuple[tuple[Grant, ...], tuple[int, ...]]:
        """Change the grants of one source in one transaction.

        Args:
            hub: Id of the hub.
            by: Who changes them; what differs goes into the audit log under this name, every line
                of one change with the same time.
            change: Takes the grants of that source as they are, returns them as they shall be.
            source: Grants of other sources stay.

        Returns:
            The grants of that source as they are now, and the ids of the log's new lines.

        Raises:
            BadRequest: Another source has a grant of one of these ids, or pins one of these GPUs to
                somebody else; nothing was written.
        """
        with self._transaction() as session:
            return self._edit_grants(session, hub, by, change, source)

    def try_grants(
        self,
        hub: str,
        change: Callable[[tuple[Grant, ...]], Sequence[Grant]],
        *,
        source: str = "ledger",
    ) -> None:
        """Judge a change of grants as ``change_grants`` would, and write nothing.

        Raises:
            BadRequest: As ``change_grants`` does.
        """
        with self._reading() as session:
            self._judged(session, hub, change, source)

    def _edit_grants(
        self,
        session: Session,
        hub: str,
        by: str,
        change: Callable[[tuple[Grant, ...]], Sequence[Grant]],
        source: str = "ledger",
        undoes: Mapping[str, int] | None = None,
    ) -> tuple[tuple[Grant, ...], tuple[int, ...]]:
        before, after = self._judged(session, hub, change, source)
        at = self._moment(session, hub)
        ids = []
        for one in sorted({*before, *after}):
            if before.get(one) != after.get(one):
                ids.append(
                    self._note(
                        session,
                        hub,
                        by,
                        "grant",
                        one,
                        before[one].as_json() if one in before else None,
                        after[one].as_json() if one in after else None,
                        at,
                        undoes=(undoes or {}).get(one),
                    )
                )
                self._write_grant(session, hub, at, one, after.get(one))
        return tuple(after.values()), tuple(ids)

    def _judged(
        self,
        session: Session,
        hub: str,
        change: Callable[[tuple[Grant, ...]], Sequence[Grant]],
        source: str,
    ) -> tuple[dict[str, Grant], dict[str, Grant]]:
        """The grants of a source before and after a change that contradicts no other source's."""
        known = self._grants(session, hub)
        before = {grant.id: grant for grant in known if grant.source == source}
        others = {grant.id: grant for grant in known if grant.source != source}
        after = {grant.id: grant for grant in change(tuple(before.values()))}
        # The hub's own word (configuration, groups) is written down in any case; an admin who
        # contradicts it is told.
        faults = conflicts([*others.values(), *after.values()]) if source == "ledger" else []
        faults += [f"the {others[one].source} has a grant {one}" for one in others if one in after]
        if faults:
            raise BadRequest(
                "The grants contradict others: " + "; ".join(faults) + ".",
                faults=faults,
                problems=[Problem(fault) for fault in faults],
            )
        return before, after

    def _write_grant(
        self, session: Session, hub: str, at: float, grant_id: str, new: Grant | None
    ) -> None:
        if new is None:
            session.execute(delete(GrantRow).where(GrantRow.hub == hub, GrantRow.id == grant_id))
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
    ) -> int | None:
        """Change what is decided about a device in one transaction.

        Returns:
            Id of the log's line; None when nothing differs.
        """
        with self._transaction() as session:
            return self._change_setting(session, hub, uuid, by, change)

    def _change_setting(
        self,
        session: Session,
        hub: str,
        uuid: GpuUuid,
        by: str,
        change: Callable[[DeviceSetting], DeviceSetting],
        undoes: int | None = None,
    ) -> int | None:
        row = session.get(DeviceSettingRow, (hub, uuid))
        was = DeviceSetting(uuid)
        if row is None:
            row = DeviceSettingRow(hub=hub, uuid=uuid)
        else:
            was = DeviceSetting(uuid, row.pool, row.mode, row.drained)
        now = change(was)
        now = replace(now, drained=now.drained[:255])
        if now == was:
            return None
        row.pool, row.mode, row.drained = now.pool, now.mode, now.drained
        row.at = self.now()
        session.add(row)
        before, after = (decided(one) for one in (was, now))
        return self._note(session, hub, by, "gpu", uuid, before, after, undoes=undoes)

    # -- inventory --------------------------------------------------------------------------

    def write_inventory(self, hub: str, inventory: Inventory) -> None:
        """Replace what is known of a hub's GPUs."""
        with self._transaction() as session:
            session.execute(delete(DeviceRow).where(DeviceRow.hub == hub))
            for gpu in inventory.gpus:
                facts = {key: value for key, value in asdict(gpu).items() if key != "uuid"}
                session.add(DeviceRow(hub=hub, uuid=gpu.uuid, facts=facts, seen_at=self.now()))
            session.merge(InventoryRow(hub=hub, reason=inventory.reason))

    def read_inventory(self, hub: str) -> Inventory:
        """Return a hub's GPUs as it saw them last, in index order, or why it saw none."""
        with self._reading() as session:
            rows = session.scalars(select(DeviceRow).where(DeviceRow.hub == hub)).all()
            gpus = [_gpu(row) for row in rows]
            looked = session.get(InventoryRow, hub)
            reason = looked.reason if looked else ""
        gpus.sort(key=lambda gpu: (gpu.index, gpu.uuid))
        return Inventory(tuple(gpus), reason if reason or gpus else _NONE_SEEN)


# A spawner of the hub looks, and the hub makes none for somebody who only uses the service.
_NONE_SEEN: Final = (
    "The hub did not look for GPUs yet. It does when somebody opens a page of the hub itself, and "
    "before a server starts."
)


def decided(setting: DeviceSetting) -> dict[str, Any]:
    """What is decided about a device, as the log holds it."""
    return {"pool": setting.pool, "mode": setting.mode, "drained": setting.drained}


def _grant(spec: dict[str, Any]) -> Grant:
    return Grant(**{**spec, "gpus": tuple(spec["gpus"]), "images": tuple(spec["images"])})


def _gpu(row: DeviceRow) -> Gpu:
    return build_gpu(int(row.facts.get("index", 0)), {"uuid": row.uuid, **row.facts})

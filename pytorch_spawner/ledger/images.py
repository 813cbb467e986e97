"""The catalog of images: what each was found to be; see ``core.catalog``."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import select

from pytorch_spawner.core.catalog import Image, read_image
from pytorch_spawner.ledger.log import Log
from pytorch_spawner.ledger.models import ImageRow

_VERSION: Final = "images"


class Images(Log):
    """The part of the ledger about images."""

    def images(self, hub: str) -> tuple[Image, ...]:
        """Every image that was scanned, by reference."""
        found = select(ImageRow).where(ImageRow.hub == hub).order_by(ImageRow.reference)
        with self._reading() as session:
            return tuple(_image(row) for row in session.scalars(found))

    def images_version(self, hub: str) -> int:
        """A number that grows whenever anything changes that ``images`` gives, and only then."""
        return self._counted(hub, _VERSION)

    def image(self, hub: str, reference: str) -> Image | None:
        """One image; None where it was never scanned."""
        with self._reading() as session:
            row = session.get(ImageRow, (hub, reference))
            return None if row is None else _image(row)

    def save_image(self, hub: str, image: Image, by: str) -> Image | None:
        """Write down what a scan found out; from now on starts of its reference use this image.

        Args:
            hub: Id of the hub.
            image: What was found.
            by: Who scanned it.

        Returns:
            What was written before; None where nothing was.
        """
        with self._transaction() as session:
            key = (hub, image.reference)
            row = session.get(ImageRow, key)
            was = None if row is None else _image(row)
            if row is None:
                row = ImageRow(hub=hub, reference=image.reference)
                session.add(row)
            row.image_id, row.scanned_at, row.by = image.image_id, image.scanned_at, by[:255]
            row.facts = _storable(image.as_json())
            self._count_up(session, hub, "shown")
            self._count_up(session, hub, _VERSION)
            before = None if was is None else _about(was)
            if before != _about(image):
                subject = image.reference
                # What runs on which GPU is asked at every start: schedulers need not wake.
                self._note(
                    session, hub, by, "image", subject, before, _about(image), is_decision=False
                )
            return was

    def remove_image(self, hub: str, reference: str, by: str) -> Image | None:
        """Forget an image; the engine keeps it.

        Returns:
            What was known of it; None where nothing was.
        """
        with self._transaction() as session:
            row = session.get(ImageRow, (hub, reference))
            if row is None:
                return None
            was = _image(row)
            session.delete(row)
            self._count_up(session, hub, "shown")
            self._count_up(session, hub, _VERSION)
            self._note(session, hub, by, "image", reference, _about(was), None, is_decision=False)
            return was


def _image(row: ImageRow) -> Image:
    return read_image(
        {
            **row.facts,
            "reference": row.reference,
            "image_id": row.image_id,
            "scanned_at": row.scanned_at,
        }
    )


def _about(image: Image) -> dict[str, Any]:
    """What the log says of an image: enough to see what starts got at that time."""
    return {
        "image_id": image.image_id,
        "name": image.name,
        "problem": image.problem[:500],
    }


def _storable(data: Any) -> Any:
    """Text of an image as any database takes it: no zero byte, no half of a character."""
    if isinstance(data, str):
        return data.replace("\0", "").encode("utf-8", "replace").decode()
    if isinstance(data, dict):
        return {key: _storable(value) for key, value in data.items()}
    return [_storable(one) for one in data] if isinstance(data, list) else data

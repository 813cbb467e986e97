"""What is known of the images on offer, before a start: which fit, which is meant by "auto".

``core.compat`` decides whether an image runs on a GPU; here it is asked at the right moments:
before the queue, so that nobody waits for a GPU that the image cannot use, and again for the very
GPU that was given. An image that was never scanned is let through: its own checks say what is
wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pytorch_spawner.adapters import engine
from pytorch_spawner.container import ContainerSpawner
from pytorch_spawner.core import catalog, compat
from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.gpus import Gpu
from pytorch_spawner.core.request import AUTO, Request
from pytorch_spawner.dispatch import Rules
from pytorch_spawner.errors import ImageDoesNotFit, LabError
from pytorch_spawner.rules import rules_of, usual_of


class GatedSpawner(ContainerSpawner):
    """A container whose image is known to fit before it is started."""

    # What the configuration named, before a start put the very image of its plan in its place.
    _usual_image: str = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # As long as nothing but the configuration has set this spawner's values.
        self._usual = usual_of(self)
        # The hub makes a person's spawner for the first of its own pages that they open.
        self.lab.gpus.look_ahead(self._usual.spec)

    @property
    def rules(self) -> Rules:
        """What is said about the queue.

        Raises:
            BadRequest: The configuration's grants are wrong.
        """
        return rules_of(self._usual, self, self.lab)

    @property
    def image_names(self) -> Mapping[str, str]:
        """Display name -> reference of what may be started."""
        self._usual_image = self._usual_image or str(self.image)
        return self.images or {self._usual_image: self._usual_image}

    async def known_images(self) -> dict[str, Image]:
        """What scans found out of what is on offer, by reference; empty where nobody can say."""
        try:
            known = catalog.by_reference(await self.lab.scanned_images())
        except LabError as error:
            self.log.warning("%s: the catalog of images is not known: %s", self._log_name, error)
            return {}
        return {one: known[one] for one in self.image_names.values() if one in known}

    async def unfit_images(self, gpus: Sequence[Gpu]) -> dict[str, str]:
        """The images that run on none of these GPUs: display name -> why, as a sentence."""
        known = await self.known_images()
        found = {}
        for name, reference in self.image_names.items():
            image = known.get(reference)
            if image is not None and gpus:
                fit = compat.fit_any(image, gpus, tuple(known.values()))
                if fit.is_refused:
                    found[name] = fit.sentence
        return found

    async def settle_image(self, wanted: Request) -> tuple[Request, str]:
        """Before the queue: name the image that "auto" means, refuse one that fits nowhere.

        Returns:
            The request, and why it goes on without a GPU ("" where it does not): like a GPU that
            nobody asked for and no grant gives, one that the image cannot use is done without.

        Raises:
            ImageDoesNotFit: No GPU that the start could get runs it.
        """
        gpus = await self._candidates(wanted)
        known = await self.known_images()
        try:
            if wanted.image == AUTO:
                choices = await self._allowed(known.values(), wanted)
                return self._choose(wanted, choices, gpus), ""
            _require_fit(known, wanted.image, gpus)
        except ImageDoesNotFit as error:
            if wanted.is_asked and wanted.on_busy != "cpu":
                raise
            without = wanted.without_gpu()
            if without.image == AUTO:
                without = self._choose(without, list(known.values()), [])
            return without, f"This server runs without a GPU. {error.public_message}"
        return wanted, ""

    async def fit_image(
        self, wanted: Request, gpus: Sequence[Gpu], grant: str, *, is_auto: bool
    ) -> Request:
        """With a lease: choose for these very GPUs, or refuse what does not run on one of them.

        Args:
            wanted: What was asked for.
            gpus: What was given.
            grant: Id of the grant it was given through, which may be for some images alone.
            is_auto: Nobody named the image.

        Raises:
            ImageDoesNotFit: It does not run on them.
        """
        known = await self.known_images()
        if is_auto:
            choices = await self._allowed(known.values(), wanted, grant)
            fitting = [
                one for one in choices if not any(compat.fit(one, gpu).is_refused for gpu in gpus)
            ]
            return self._choose(wanted, fitting or choices, gpus[:1])
        image = known.get(wanted.image)
        for gpu in gpus if image is not None else ():
            fit = compat.explain(known[wanted.image], gpu, tuple(known.values()))
            if fit.is_refused:
                raise ImageDoesNotFit(fit.sentence)
        return wanted

    async def _candidates(self, wanted: Request) -> list[Gpu]:
        if not wanted.gpus:
            return []
        inventory = await self.lab.gpus.offered(self._usual.spec)
        return [one for one in inventory.gpus if wanted.pool in ("", one.pool) and not one.drained]

    async def _allowed(
        self, images: Iterable[Image], wanted: Request, grant: str = ""
    ) -> list[Image]:
        """Those of the images that a grant of this person is for, or the one that was used."""
        if not wanted.gpus:
            return list(images)
        groups = [group.name for group in self.user.groups]
        try:
            mine = await self.lab.queue.grants_of(self.user.name, groups, self.rules)
        except LabError:
            return list(images)
        used = [one for one in mine if grant in ("", one.id)]
        if not used or any(not one.images for one in used):
            return list(images)
        named = {reference for one in used for reference in one.images}
        return [one for one in images if one.reference in named]

    def _choose(self, wanted: Request, choices: Sequence[Image], gpus: Sequence[Gpu]) -> Request:
        """The best image for the first of these GPUs that any image runs on.

        Raises:
            ImageDoesNotFit: None runs on any of them.
        """
        told = [compat.best_image(choices, gpu) for gpu in gpus or (None,)]
        best = next((one for one in told if one.image is not None), told[0])
        if best.image is None and choices and all(one.fit.is_refused for one in told):
            raise ImageDoesNotFit(best.sentence)
        usual = next(iter(self.image_names.values()))
        return replace(wanted, image=best.image.reference if best.image else usual)

    async def pinned_image(self, reference: str) -> str:
        """The very image that was scanned, whatever its tag is moved to meanwhile.

        A tag that is pulled anew at every start is meant to move.
        """
        known = (await self.known_images()).get(reference)
        if known is None or not known.image_id or self.pull_policy.lower() == "always":
            return reference
        if await self._call(engine.has_image, known.image_id):
            return known.image_id
        self.log.warning("the image %s is not here as it was scanned; its tag is used", reference)
        return reference


def _require_fit(known: Mapping[str, Image], reference: str, gpus: Sequence[Gpu]) -> None:
    """Refuse an image that runs on none of these GPUs; one that nobody scanned is let through.

    Raises:
        ImageDoesNotFit: It was scanned, and does not.
    """
    image = known.get(reference)
    if image is None or not gpus:
        return
    fit = compat.fit_any(image, gpus, tuple(known.values()))
    if fit.is_refused:
        raise ImageDoesNotFit(fit.sentence)

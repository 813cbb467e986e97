"""What is known of the images on offer, before a start: which fit, which is meant by "auto".

``core.compat`` decides whether an image runs on a GPU; here it is asked at the right moments:
before the queue, so that nobody waits for a GPU that the image cannot use, and again for the very
GPU that was given. An image that was never scanned is let through: its own checks say what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pytorch_spawner.adapters import engine
from pytorch_spawner.container import ContainerSpawner
from pytorch_spawner.core import catalog, compat
from pytorch_spawner.core.catalog import Image
from pytorch_spawner.core.gpus import Gpu
from pytorch_spawner.core.request import AUTO, Request
from pytorch_spawner.errors import ImageDoesNotFit, LabError
from pytorch_spawner.rules import gpu_spec


class GatedSpawner(ContainerSpawner):
    """A container whose image is known to fit before it is started."""

    @property
    def image_names(self) -> Mapping[str, str]:
        """Display name -> reference of what may be started."""
        return self.images or {self.image: self.image}

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

    async def settle_image(self, wanted: Request) -> Request:
        """Before the queue: name the image that "auto" means, refuse one that fits nowhere.

        Raises:
            ImageDoesNotFit: No GPU that the start could get runs it.
        """
        gpus = await self._candidates(wanted)
        if wanted.image == AUTO:
            return await self._choose(wanted, gpus[0] if gpus else None)
        known = await self.known_images()
        image = known.get(wanted.image)
        if image is not None and gpus:
            fit = compat.fit_any(image, gpus, tuple(known.values()))
            if fit.is_refused:
                raise ImageDoesNotFit(fit.sentence)
        return wanted

    async def fit_image(self, wanted: Request, gpus: Sequence[Gpu], *, is_auto: bool) -> Request:
        """With a lease: choose again, or refuse, where the image does not run on these very GPUs.

        Raises:
            ImageDoesNotFit: It does not, and somebody chose it.
        """
        known = await self.known_images()
        image = known.get(wanted.image)
        if image is None:
            return wanted
        for gpu in gpus:
            fit = compat.explain(image, gpu, tuple(known.values()))
            if fit.is_refused and is_auto:
                return await self._choose(wanted, gpu)
            if fit.is_refused:
                raise ImageDoesNotFit(fit.sentence)
        return wanted

    async def _candidates(self, wanted: Request) -> list[Gpu]:
        if not wanted.gpus:
            return []
        inventory = await self.lab.gpus.offered(gpu_spec(self))
        return [one for one in inventory.gpus if wanted.pool in ("", one.pool)]

    async def _choose(self, wanted: Request, gpu: Gpu | None) -> Request:
        best = compat.best_image([*(await self.known_images()).values()], gpu)
        if best.image is None and best.fit.is_refused:
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

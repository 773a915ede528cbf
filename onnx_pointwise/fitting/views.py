"""What sites see that read one value in the same way, summed up once for all of them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence

from onnx_pointwise.graph import Site
from onnx_pointwise.numerics import Moments


class Once:
    """Sums of patches, made by the first of several threads that want them."""

    def __init__(self, make: Callable[[], tuple[Moments, Moments]]) -> None:
        self._make: Callable[[], tuple[Moments, Moments]] | None = make
        self._lock = threading.Lock()
        self._sums: tuple[Moments, Moments] | None = None

    def __call__(self) -> tuple[Moments, Moments]:
        """The sums."""
        with self._lock:
            if self._sums is None:
                assert self._make is not None, "they are made once"
                self._sums, self._make = self._make(), None
            return self._sums


class Views:
    """What sites see that read one value in the same way: the branches of an Inception module.

    Args:
        sites: All sites to be refitted.
    """

    def __init__(self, sites: Sequence[Site]) -> None:
        self._left = Counter(site.view for site in sites)
        self._sums: dict[object, Once] = {}

    def of(self, site: Site, make: Callable[[], tuple[Moments, Moments]]) -> Once | None:
        """Sums for a site, which the first one of its view makes; None where no other one sees the same.

        Args:
            site: A site, each asked for once.
            make: Makes them.
        """
        view = site.view
        self._left[view] -= 1
        if not self._left[view]:
            return self._sums.pop(view, None)  # nobody else will ask
        return self._sums.setdefault(view, Once(make))

"""All engines: which of them gets a request, and what they serve together."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from math import ceil

from thriftree.server.errors import ApiError
from thriftree.server.remote.ring import Ring, least_loaded
from thriftree.server.remote.upstream import Upstream


class Engines:
    def __init__(self, upstreams: Sequence[Upstream], retry_seconds: float) -> None:
        """`retry_seconds`: when a client may come back if no engine answers (the time of a health check)."""
        self.all = {upstream.name: upstream for upstream in upstreams}
        self._rested = list(self.all)  # the one chosen longest ago first
        self._ring = Ring(self.all)
        self._retry_seconds = retry_seconds
        self.on_change: Callable[[bool], None] = lambda available: None

    @property
    def available(self) -> bool:
        """Whether any engine is up."""
        return any(upstream.up for upstream in self.all.values())

    def changed(self) -> None:
        """Some engine may have gone up or down."""
        self.on_change(self.available)

    def choose(self, model: str | None, key: bytes | None, tried: Collection[str] = ()) -> Upstream | None:
        """Whom to ask next; None: nobody is left but the `tried`.

        Raises:
            ApiError: 404 where no engine has the model, 503 where none of those that have it can be asked.
        """
        serving = [upstream for upstream in self.all.values() if upstream.serves(model)]
        if not serving:
            raise ApiError(404, "model_not_found", f"The model {model!r} does not exist.", "model")
        loads = {name: self.all[name].inflight for name in self._rested if self._can(self.all[name], model, tried)}
        if not loads:
            if tried:
                return None
            raise self._nobody(serving)
        name = least_loaded(loads) if key is None else self._ring.choose(key, loads)
        self._rested.remove(name)
        self._rested.append(name)
        return self.all[name]

    def others(self, model: str | None, tried: Collection[str]) -> bool:
        """Whether there is somebody left to ask."""
        return any(self._can(upstream, model, tried) for upstream in self.all.values())

    def _can(self, upstream: Upstream, model: str | None, tried: Collection[str]) -> bool:
        return upstream.name not in tried and upstream.up and upstream.serves(model) and upstream.breaker.admits()

    def _nobody(self, serving: Sequence[Upstream]) -> ApiError:
        """503 with the time of the next trial, or of the next health check."""
        trials = [upstream.breaker.retry_in() for upstream in serving if upstream.up]
        return no_engine(min(trials, default=self._retry_seconds))

    def models(self) -> bytes | None:
        """``/v1/models`` of all engines that are up, each model once, as its engine tells it; None: none tells."""
        told = [upstream.models for upstream in self._up() if upstream.models is not None]
        if not told:
            return None
        data = {name: model for models in told for name, model in models.items()}
        return json.dumps({"object": "list", "data": list(data.values())}, separators=(",", ":")).encode()

    def _up(self) -> Iterator[Upstream]:
        """In the order of the flags; of engines with the same model the first one tells it."""
        return reversed([upstream for upstream in self.all.values() if upstream.up])


def no_engine(seconds: float) -> ApiError:
    """Nobody to ask."""
    retry = {"Retry-After": str(max(1, ceil(seconds)))}
    return ApiError(503, "no_engine", "no engine can take the request now; try again soon", headers=retry)

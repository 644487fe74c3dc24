"""How browsers and proxies reach the gateway, by vLLM's flags: cross-origin rules and the path that we live under."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp

from thriftree.server.middleware.cors import Cors
from thriftree.server.middleware.root_path import RootPath


@dataclass(frozen=True)
class Edge:
    """``--root-path``, ``--allowed-origins`` (none: no cross-origin access), ``--allow-credentials`` and their like."""

    root_path: str = ""
    origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> Edge:
        given: Mapping[str, list[str]] = vars(args)
        return cls(
            root_path="/" + args.root_path.strip("/") if (args.root_path or "").strip("/") else "",
            origins=tuple(given["allowed_origins"]),
            methods=tuple(given["allowed_methods"]),
            headers=tuple(given["allowed_headers"]),
            credentials=args.allow_credentials,
        )

    def around(self, app: ASGIApp) -> ASGIApp:
        """Outside of every layer that refuses, so that a browser can read its errors too."""
        if self.root_path:
            app = RootPath(app, self.root_path)
        if self.origins:
            app = Cors(app, self.origins, self.methods, self.headers, self.credentials)
        return app

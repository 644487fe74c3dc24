"""What the layers work with, made from the settings: keys, quotas, the gate, the access log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from thriftree.server.admission.gate import Gate
from thriftree.server.keys.keyring import Keyring
from thriftree.server.keys.start import open_keyring, require_keys
from thriftree.server.log_lines import LogLines
from thriftree.server.metrics import Metrics
from thriftree.server.quota import build as quota
from thriftree.server.quota.limiter import Limiter
from thriftree.server.settings import Settings


@dataclass(frozen=True)
class Parts:
    """One of each per gateway."""

    keyring: Keyring | None  # None: nobody is asked for a key
    limiter: Limiter
    gate: Gate
    lines: LogLines | None

    @classmethod
    def open(cls, settings: Settings, metrics: Metrics, vllm_keys: Sequence[str] = ()) -> Parts:
        """
        Raises:
            StartError: a setting names what is not there or cannot be opened.
        """
        admission = settings.admission
        return cls(
            keyring=open_keyring(settings.auth, list(vllm_keys)),
            limiter=quota.limiter(settings.quotas, metrics, settings.auth.database),
            gate=Gate(admission.max_queue, admission.max_queue_tokens, admission.max_running),
            lines=LogLines(settings.access_log) if settings.access_log else None,
        )

    def require_keys(self, settings: Settings, host: str | None, uds: str | None) -> None:
        """Raises StartError where everybody could ask and nobody said that this is meant."""
        require_keys(self.keyring, settings.auth, host, uds)

    async def start(self) -> None:
        """Before the first request. Raises StartError."""
        await self.limiter.start()

    async def stop(self) -> None:
        """After the last one."""
        await self.limiter.stop()
        if self.keyring is not None:
            self.keyring.close()
        if self.lines is not None:
            self.lines.close()

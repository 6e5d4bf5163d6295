"""Engines of one's own that fail where they are told to: the embedded one, but for that."""

from pathlib import Path
from typing import Any

import torch

from agentrl.config.schema import RolloutConfig
from agentrl.rollout.engines.base import Completion, Sampling
from agentrl.rollout.engines.local import LocalEngine


class _Own(LocalEngine):
    def __init__(self, module: Any, tokenizer: Any, config: RolloutConfig, rank: int, count: int) -> None:
        limits = {"max_concurrent": config.max_concurrent, "max_context_tokens": config.max_context_tokens}
        super().__init__(module, tokenizer, **limits)
        self.options = config.engine_options


class Leaking(_Own):
    """Keeps `leak` bytes after every batch but the first."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.kept: list[torch.Tensor] = []

    def pause(self) -> None:
        """The batch is over."""
        super().pause()
        size = self.options["leak"] if self.kept else 0
        self.kept.append(torch.ones(size, dtype=torch.uint8))


class Hungry(_Own):
    """Asks torch for more memory than a machine can address, unless the file `flag` says that it did so before."""

    async def generate(
        self, ids: list[int], sampling: Sampling, *, key: tuple[int, ...], session: str | None = None
    ) -> Completion:
        """One turn."""
        flag = self.options.get("flag")
        if flag is None or not Path(flag).exists():
            if flag is not None:
                Path(flag).touch()
            torch.empty(1 << 50)
        return await super().generate(ids, sampling, key=key, session=session)

"""Optional packages that are not installed: one error for the framework, the environments and the retriever."""

from agentrl.common.installation import install_hint
from agentrl.errors import UserError


class MissingExtraError(UserError, ImportError):
    """An optional package is not installed; the message names the extra that brings it.

    Args:
        package: its name, as `pip` knows it.
        extra: of this distribution, which brings it; None: every installation has it, and this one lost it.
        purpose: what cannot be done without it; the beginning of the message.
    """

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        install = f"pip install {package}" if extra is None else install_hint(extra)
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: {install}")

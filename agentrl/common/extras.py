"""Optional packages that are not installed: one error for the framework, the environments and the retriever."""

from agentrl.common.installation import install_hint
from agentrl.errors import UserError


class MissingExtraError(UserError, ImportError):
    """An optional package is not installed; the message names the extra that brings it.

    Args:
        package: its name, as `pip` knows it.
        extra: of this distribution, which brings it.
        purpose: what cannot be done without it; the beginning of the message.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: {install_hint(extra)}")

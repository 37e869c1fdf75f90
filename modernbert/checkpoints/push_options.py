"""Options of the upload of a model folder."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

__all__ = ["PushConfig"]


@dataclass
class PushConfig:
    """Upload a model folder to the Hugging Face Hub, in one commit.

    The access token is that of `hf auth login`, or of the environment variable HF_TOKEN.
    """

    folder: Path
    """Model folder."""
    name: str
    """Name on the Hub, OWNER/NAME; the repository is created if it does not exist."""
    _: KW_ONLY
    private: bool | None = None
    """Whether a new repository is private; the setting of the owner, by default."""
    revision: str | None = None
    """Branch to commit to, created if it does not exist; main, by default."""
    message: str = "Upload a model folder"
    """Message of the commit."""

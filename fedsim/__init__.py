"""fedsim: a federated and continual learning simulator."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.api import Run, load, resume, run
    from fedsim.grid import LocalGrid, run_app

__all__ = ["LocalGrid", "Run", "load", "resume", "run", "run_app"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import on first use, so that the command line answers before torch has loaded."""
    if name in ("Run", "load", "resume", "run"):
        from fedsim import api

        return getattr(api, name)
    if name in __all__:
        from fedsim import grid

        return getattr(grid, name)
    raise AttributeError(f"module 'fedsim' has no attribute {name!r}")

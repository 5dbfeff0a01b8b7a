"""Which trackers there are, what each needs, and whether that is installed."""

from importlib.util import find_spec
from typing import NamedTuple

from experiments.common.errors import OptionError


class Tracker(NamedTuple):
    """What takes runs: a module beside this one, whose function `write` fills a folder.

    Attributes:
        module: its name.
        extra: the extra of pyproject.toml that installs what it needs.
        needs: the modules that have to be importable.
        look: the shell's command that shows what was written to the folder {out}, quoted, of the sweep {name}.
    """

    module: str
    extra: str
    needs: tuple[str, ...]
    look: str


TRACKERS = {
    "tensorboard": Tracker("tensorboard_runs", "tensorboard", ("tensorboard",), "tensorboard --logdir {out}"),
    "wandb-offline": Tracker("wandb_runs", "wandb", ("wandb",), "wandb sync {out}/wandb/offline-run-*"),
    "mlflow": Tracker(
        "mlflow_runs",
        "mlflow",
        ("mlflow", "sqlalchemy", "alembic"),
        "cd {out} && mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ),
    "trackio": Tracker("trackio_runs", "trackio", ("trackio",), "TRACKIO_DIR={out} trackio show --project {name}"),
    "csv": Tracker(
        "csv_tables", "", (), 'python -c "import pandas, sys; print(pandas.read_csv(sys.argv[1]))" {out}/summary.csv'
    ),
}
NAMES = f"{', '.join([*TRACKERS][:-1])} or {[*TRACKERS][-1]}"


def check(option: str, tracker: str) -> None:
    """Raise OptionError, which says how to install it, unless the library of a tracker is installed."""
    _, extra, needs, _ = TRACKERS[tracker]
    for name in needs:
        spec = find_spec(name)
        # A folder of that name, such as wandb leaves behind, is found, too, but has no origin.
        if spec is None or spec.origin is None:
            raise OptionError(f"{option} {tracker} needs the extra {extra}: pip install -e '.[{extra}]'")

"""Where the runs of a sweep come from, in the words of a report: data, code, machine, and values tried."""

from experiments.reports.aggregation import short
from experiments.reports.markup import plain

RUN_KEYS = ("sample", "configs", "steps", "epochs", "n_train", "batch_size", "seeds", "accumulate", "schedule")
RUN_KEYS += ("warmup", "init_scale")


def values_of(provenance: dict) -> str:
    """Return what the values of the axes make up."""
    return "values tried" if (provenance.get("sweep") or {}).get("configs") else "grid"


def data_line(data: dict) -> str:
    """Return a line about the data of a sweep. data: from its provenance."""
    sizes = f"{data.get('n_train', '?')} training and {data.get('n_eval', '?')} evaluation examples"
    warning = f" **{plain(data['warning'])}**" if data.get("warning") else ""
    name, source = plain(data.get("name", "unknown")), plain(data.get("source", "an unknown source"))
    return f"Data: {name}, {sizes}, from {source}.{warning}"


def rows(provenance: dict) -> list[list[str]]:
    """Return the rows of a table that says when, where and by which code the runs were trained."""
    git, sweep, seconds = (provenance.get(key) or {} for key in ("git", "sweep", "seconds"))
    device, versions = provenance.get("device") or {}, provenance.get("versions") or {}
    # Sweeps of one optimizer once kept their grid under "axes".
    grids = sweep.get("optimizers") or {"": sweep.get("axes", {})}
    commit = f"{git.get('commit') or 'unknown'}{' (with uncommitted changes)' if git.get('dirty') else ''}"
    found = [
        ["started", provenance.get("started", "unknown")],
        *([["data", data["reason"]]] if (data := provenance.get("data") or {}).get("reason") else []),
        ["device", ", ".join(f"{value}" if key == "name" else f"{key} {value}" for key, value in device.items())],
        ["commit", commit],
        ["versions", ", ".join(f"{name} {version}" for name, version in versions.items())],
        *([values_of(provenance) + f" of {name}" * (len(grids) > 1), grid_line(axes)] for name, axes in grids.items()),
        ["run", ", ".join(f"{key} {sweep[key]}".removesuffix(".0") for key in RUN_KEYS if sweep.get(key) is not None)],
        *evaluated(sweep, provenance.get("data") or {}),
        # Not known yet when the page is first drawn, and drawing again gives the same page.
        ["time", ", ".join(f"{value:.4g} s {name}" for name, value in seconds.items() if name != "draw")],
    ]
    if alone := provenance.get("one_after_the_other"):
        found.append(["one after the other", alone.get("text") or f"{alone.get('seconds')} s"])
    return found


def evaluated(sweep: dict, data: dict) -> list[list[str]]:
    """Return a row about evaluations that took some of the examples; none if all did."""
    if not (some := sweep.get("eval_examples")):
        return []
    of = f"{some} of {data.get('n_eval', '?')}"
    return [["evaluation", f"{of} examples, always the same, each class by its share; last: all"]]


def grid_line(axes: dict[str, list[float] | str]) -> str:
    """Return axes as a user would type them. axes: values by axis, or a range that was sampled as a string."""
    typed = {axis: v if isinstance(v, str) else f"{{{' '.join(map(short, v))}}}" for axis, v in axes.items()}
    return ", ".join(f"{axis} {values}" for axis, values in typed.items())

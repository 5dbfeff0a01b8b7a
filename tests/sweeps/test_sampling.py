"""Do samples cover the ranges asked for, and are their winners confirmed?"""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import sweep
from experiments.common.errors import OptionError
from experiments.reports import aggregation
from experiments.sweeps import space
from experiments.sweeps.axis_values import Range, parse
from experiments.training import population
from experiments.training.axes import NAMED


def named(**values):
    """Return a grid of some axes."""
    return {NAMED[name]: own for name, own in values.items()}


@pytest.mark.parametrize(("sequence", "n"), [("sobol", 64), ("halton", 50)])
def test_samples_cover_ranges_evenly_in_their_scale(sequence, n):
    axes = named(lr=Range(1e-4, 1.0), beta1=Range(0.0, 0.999), eps=[1e-8, 1e-4], weight_decay=[0.1])
    table = space.sampled_configurations(axes, sequence, n)
    assert list(table.columns) == ["lr", "beta1", "eps", "weight_decay"]
    assert len(table) == n
    assert (table["weight_decay"] == 0.1).all()
    # Low discrepancy: equal counts, to within two, in each decade of lr and of 1 - beta1, and for each eps.
    for exponents in (np.log10(table["lr"]), np.log10(1 - table["beta1"])):
        counts = np.histogram(exponents, bins=np.arange(-4, 1) if exponents.min() < -3 else np.arange(-3, 1))[0]
        assert np.ptp(counts) <= 2
    assert abs((table["eps"] == 1e-8).sum() - n / 2) <= 1
    assert table["lr"].between(1e-4, 1).all()
    assert table["beta1"].between(0, 0.999).all()
    pd.testing.assert_frame_equal(table, space.sampled_configurations(axes, sequence, n))


def test_what_an_optimizer_lacks_leaves_its_other_values_as_they_are():
    one = space.sampled_configurations(named(lr=Range(1e-4, 1.0)), "halton", 10)
    two = space.sampled_configurations(named(lr=Range(1e-4, 1.0), beta1=[0.9]), "halton", 10)
    assert one["lr"].tolist() == two["lr"].tolist()
    lists = space.sampled_configurations(named(lr=[1e-3, 1e-2], beta1=[0.0, 0.9]), "sobol", 64)
    assert len(lists) == 4


@pytest.mark.parametrize("text", ["sobol", "sobol:0", "sobol:100", "halton:-1", "random:8", "", "sobol:2.0"])
def test_bad_samples_are_refused_in_one_sentence(text):
    with pytest.raises(OptionError, match=r"^--sample accepts sobol:N with a power of two, or halton:N"):
        space.parse_sample(text)


@pytest.mark.parametrize(
    ("axis", "token", "message"),
    [
        ("lr", "0..1", "--lr: a range needs 0 < START < STOP, not '0..1'"),
        ("lr", "1..1", "--lr: a range needs 0 < START < STOP"),
        ("lr", "1..inf", "--lr: a range needs 0 < START < STOP"),
        ("beta2", "0.9..1", "--beta2: a range needs 0 <= START < STOP < 1"),
        ("eps", "small..1", "--eps accepts numbers >= 0, not 'small'"),
    ],
)
def test_bad_ranges_are_refused_in_one_sentence(axis, token, message):
    with pytest.raises(OptionError) as error:
        parse(NAMED[axis], [token], sampled=True)
    assert message in str(error.value)


def test_a_range_with_a_count_is_a_list_of_values():
    assert parse(NAMED["lr"], ["1e-3..1e-1:3"], sampled=True) == [1e-3, 1e-2, 1e-1]
    assert parse(NAMED["lr"], ["1e-3..1e-1"], sampled=True) == Range(1e-3, 1e-1)
    with pytest.raises(OptionError, match="--sample"):
        parse(NAMED["lr"], ["1e-3..1e-1"])
    with pytest.raises(OptionError, match="--lr takes a range without COUNT only with --sample"):
        sweep.sweep("regression", lr=Range(1e-3, 1e-1))


@pytest.mark.slow
def test_sampled_sweeps_confirm_their_winners_on_fresh_seeds(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    words = ["--optimizer", "adam", "momentum", "--lr", "1e-3..0.1", "--sample", "sobol:4"]
    words += ["--seeds", "2", "--steps", "8", "--evaluations", "2", "--confirm", "3", "--target", "0.9"]
    assert sweep.main(["regression", *words, "--out", str(out)]) == 0
    runs, provenance = pd.read_parquet(out / "runs.parquet"), json.loads((out / "provenance.json").read_text())
    assert runs.groupby("optimizer").size().to_dict() == {"adam": 8, "momentum": 8}
    assert runs.groupby("optimizer")["lr"].nunique().to_dict() == {"adam": 4, "momentum": 4}
    assert provenance["sweep"]["optimizers"]["adam"]["lr"] == "0.001..0.1"
    names = {path.stem for path in out.iterdir()}
    assert names >= {"budget", "target", "optimizers", "wall_clock", "sensitivity_lr"}
    assert not any(name.startswith("heatmap") for name in names)
    # Fresh: no run has used these seeds. The same configurations: those that were best.
    again, best = pd.DataFrame(provenance["confirmed"]["runs"]), aggregation.best_of_each(aggregation.ranked(runs))
    assert provenance["confirmed"]["seeds"] == sorted(again["seed"].unique()) == [2, 3, 4]
    assert dict(again.groupby("optimizer")["lr"].unique().explode()) == dict(best.set_index("optimizer")["lr"])
    text, printed = (out / "report.md").read_text(), capsys.readouterr().out
    for name, losses in again.groupby("optimizer")["eval_loss"]:
        assert f"{losses.median():.4g}" in printed, name
        assert f"| {losses.median():.4g} | {losses.quantile(0.25):.4g} to {losses.quantile(0.75):.4g} |" in text
    assert "n = 3 fresh seeds (2 to 4)" in text
    assert "Target: loss 0.9" in text
    assert "target: loss 0.9" in printed
    # Confirming runs are kept as those of the sweep are: with more seeds, only the missing runs are trained.
    sizes, train = [], population.train_lanes

    def spy(problem, configs, seeds, **options):
        sizes.append((len(configs), list(seeds)))
        return train(problem, configs, seeds, **options)

    monkeypatch.setattr(population, "train_lanes", spy)
    words[words.index("--confirm") + 1] = "4"
    assert sweep.main(["regression", *words, "--out", str(out)]) == 0
    assert sizes == [(1, [5])] * 2

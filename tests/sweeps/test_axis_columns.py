"""Does the table of runs have a column for every axis?"""

from experiments.sweep import sweep


def test_an_axis_that_only_a_later_optimizer_has():
    runs, _, _ = sweep("regression", optimizer=["adam", "adadelta"], axes={"rho": [0.8, 0.9]}, steps=2, progress=False)
    assert runs.groupby("optimizer")["rho"].agg(list).map(sorted)["adadelta"] == [0.8, 0.9]
    assert runs.loc[runs["optimizer"] == "adam", "rho"].isna().tolist() == [True]


def test_steps_are_an_axis_like_the_others():
    runs, curves, _ = sweep("regression", lr=1e-3, axes={"steps": [2, 4]}, progress=False)
    assert list(runs).index("optimizer") < list(runs).index("steps") < list(runs).index("seed")
    lengths = curves.groupby("run_id")[["step"]].agg("max").loc[:, "step"].tolist()
    assert runs["steps"].tolist() == lengths == [2, 4]

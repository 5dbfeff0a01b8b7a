"""Are configurations from a table those of a grid, and is a table that is none refused in one sentence?"""

import io
import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import sweep
from experiments.common.errors import OptionError
from experiments.sweeps import configs_file, plan, reading, run_keys
from experiments.sweeps.config import SweepConfig
from experiments.training.axes import axes_in
from tests.sweeps.small import train

OPTIONS = {"task": "regression", "steps": 5, "batch_size": 64, "evaluations": 2, "device": "cpu"}


def planned(**options) -> plan.Plan:
    return plan.make_plan(SweepConfig(**{**OPTIONS, **options}))


def test_twenty_configurations_of_a_file_are_those_of_a_grid_and_are_trained_once(tmp_path, trained, no_figures):
    grid = {"lr": [1e-4, 1e-3, 0.01, 0.1, 1.0], "beta1": [0.0, 0.9], "amsgrad": ["false", "true"]}
    file = tmp_path / "twenty.csv"
    pd.DataFrame(itertools.product(*grid.values()), columns=list(grid)).sample(frac=1, random_state=0).to_csv(
        file, index=False
    )
    by_grid = {"lr": grid["lr"], "beta1": grid["beta1"], "axes": {"amsgrad": [True, False]}}
    assert sorted(run_keys.keys(planned(configs=file))) == sorted(run_keys.keys(planned(**by_grid)))
    first = train(tmp_path / "out", **by_grid, seeds=1)
    count = sum(trained)
    again = train(tmp_path / "out", lr=None, beta1=None, configs=file, seeds=1)
    assert sum(trained) == count == 20
    one, other = (table.runs.drop(columns="run_id").sort_values([*grid], ignore_index=True) for table in (first, again))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert again.provenance["sweep"]["configs"] == "twenty.csv"


SEVERAL = """optimizer, lr , momentum,amsgrad,batch_size,schedule
adam,1e-3,,TRUE,32,cosine

momentum ,"1e-2",0.5,,64,constant\r
   \r
"adam",1e-3,,False,64.0,cosine
"""


def test_a_file_may_have_several_optimizers_and_options_of_runs(tmp_path, no_figures):
    file = tmp_path / "several.csv"
    file.write_bytes(b"\xef\xbb\xbf" + SEVERAL.encode())
    assert sweep.main(["regression", "--configs", str(file), "--steps", "4", "--out", str(tmp_path / "out")]) == 0
    runs = reading.load(tmp_path / "out").runs
    assert runs["optimizer"].tolist() == ["adam", "adam", "momentum"]
    assert runs["batch_size"].tolist() == [32, 64, 64]
    assert runs["schedule"].tolist() == ["cosine", "cosine", "constant"]
    assert runs["amsgrad"].tolist()[:2] == ["true", "false"]
    assert np.isnan(runs["beta1"][2])
    assert runs["eval_loss"].nunique() == 3


def test_a_table_may_be_a_data_frame_with_numbers_bools_and_classes():
    from optim import Lion

    table = pd.DataFrame(
        {"optimizer": ["adam", Lion], "lr": [np.float64(0.1), 0.1], "amsgrad": [np.True_, None], "eps": [1, pd.NA]},
        index=["a", "a"],
    )
    made = planned(configs=table)
    assert made.runs["optimizer"].tolist() == ["adam", "optim.lion:Lion"]
    assert made.runs["amsgrad"][0] == "true"
    assert made.runs["lr"].tolist() == [0.1, 0.1]
    assert made.identity["configs"] == "the table"
    assert axes_in(planned(configs=pd.DataFrame({"lr": [1.0, 2.0]}), optimizer=["sgd", "lion"]).runs)[0] == "lr"
    assert planned(configs=pd.DataFrame({"lr": [1.0, 2.0]}), optimizer=["sgd", "lion"]).n_runs == {"sgd": 2, "lion": 2}


BAD = {
    "": "--configs needs at least one row, and bad.csv has none",
    "lr\n": "--configs needs at least one row, and bad.csv has none",
    "lr,rho\n1,2\n": "--configs accepts columns named as axes, and bad.csv has 'rho': adam accepts lr, beta1",
    ",lr\n0,1\n": "--configs accepts columns named as axes, and bad.csv has '': adam",
    "lr;eps\n1;2\n": "--configs accepts columns named as axes, and bad.csv has 'lr;eps'",
    "lr,LR\n1,2\n": "--configs accepts columns named as axes, and bad.csv has 'LR'",
    "lr,lr\n1,2\n": "--configs needs every column once, and bad.csv repeats 'lr'",
    "batch-size,batch_size\n1,2\n": "--configs needs every column once, and bad.csv repeats 'batch_size'",
    "lr\n1e-3\n0.001\n": "--configs accepts every configuration once, and row 3 of bad.csv repeats 2",
    "optimizer,lr\nadam,1\nadam ,1.0\n": "--configs accepts every configuration once, and row 3 of bad.csv repeats 2",
    "lr,eps\n1\n": "--configs needs as many cells in each row as in the header, and row 2 of bad.csv has 1, not 2",
    "lr\n1\n2,3\n": "--configs needs as many cells in each row as in the header, and row 3 of bad.csv has 2, not 1",
    "lr,eps\n1,\n": "--configs: row 2 of bad.csv has an empty cell under eps",
    'lr\n""\n': "--configs: row 2 of bad.csv has an empty cell under lr",
    "optimizer,lr\n,1\n": "an optimizer in every row, or no column of them, and row 2 of bad.csv has none",
    "optimizer,lr\nlyon,1\n": "or MODULE:CLASS, not 'lyon'",
    "optimizer,lr,momentum\nadam,1,0.9\nmomentum,1,0.9\n": "row 2 of bad.csv has a value of momentum, which adam lacks",
    "lr\nfast\n": "--configs: row 2 of bad.csv: --lr accepts positive numbers, not 'fast'",
    "lr\n1e999\n": "--configs: row 2 of bad.csv: --lr accepts positive numbers, not inf",
    "lr\n1..2:3\n": "--configs: row 2 of bad.csv: --lr accepts positive numbers, not '1..2:3'",
    "hidden\n4.5\n": "--configs: row 2 of bad.csv: --axis hidden accepts a width of at least 1, not 4.5",
    "batch_size\n100000000000000000000\n": "--configs: row 2 of bad.csv: --axis batch_size accepts whole numbers",
    "batch_size\n100000\n": "--batch-size accepts at most the 8192 training examples",
    "amsgrad\nmaybe\n": "--configs: row 2 of bad.csv: --axis amsgrad accepts true or false, not 'maybe'",
    'lr\n"1\n2"\n': "--lr accepts positive numbers, not '1\\n2'",
    "steps\n5\n": "--steps and --epochs exclude each other",
    b"\xff\xfe\x00lr": "cannot be read ('utf-8' codec can't decode byte 0xff in position 0",
    b"lr\n" + b"1" * 200_000: "cannot be read (field larger than field limit",
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_bad_file_is_one_sentence_and_nothing_is_written(text, tmp_path, capsys):
    file, out = tmp_path / "bad.csv", tmp_path / "out"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert sweep.main(["regression", "--configs", str(file), "--epochs", "0.1", "--out", str(out)]) == 2
    told = capsys.readouterr().err
    assert BAD[text] in told
    assert told.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"configs": "/nowhere.csv"}, r"--configs /nowhere.csv cannot be read \(.*No such file"),
        ({"configs": "/"}, r"--configs / cannot be read \(.*directory"),
        ({"configs": ""}, "--configs accepts a CSV file, or a DataFrame, with a row for each configuration, not ''"),
        ({"configs": pd.DataFrame}, "--configs accepts a CSV file, or a DataFrame"),
        ({"configs": [{"lr": 1}]}, "--configs accepts a CSV file, or a DataFrame"),
        ({"configs": pd.DataFrame()}, "--configs needs at least one row, and the table has none"),
        ({"configs": pd.DataFrame([[1, 2]], columns=["lr", "lr"])}, "--configs needs every column once"),
        ({"configs": pd.DataFrame({("a", "b"): [1]})}, "--configs accepts columns named as axes, and the table has"),
        (
            {"configs": pd.DataFrame({"lr": [[1, 2]]})},
            r"row 0 of the table: --lr accepts positive numbers, not \[1, 2\]",
        ),
        ({"configs": pd.DataFrame({"lr": [1.0, np.nan]})}, "row 1 of the table has an empty cell under lr"),
        ({"configs": pd.DataFrame({"lr": [1]}), "lr": 1}, "--configs holds all configurations, and excludes --lr"),
        (
            {"configs": pd.DataFrame({"lr": [1]}), "axes": {"hidden": 1}, "tie": "beta1=beta2", "sample": "sobol:2"},
            "--configs holds all configurations, and excludes --axis hidden, --tie, --sample",
        ),
        (
            {"configs": pd.DataFrame({"optimizer": ["sgd"], "lr": [1]}), "optimizer": "lion"},
            "--optimizer and the column of optimizers in the table exclude each other",
        ),
        (
            {"configs": pd.DataFrame({"batch_size": [32]}), "batch_size": 64},
            "--batch-size and --axis batch_size exclude each other",
        ),
        (
            {"configs": pd.DataFrame({"epochs": [1e-3, 2e-3]}), "steps": None},
            "--axis epochs accepts numbers that differ in steps, and 0.001 and 0.002 make 1",
        ),
    ],
)
def test_what_is_no_table_or_does_not_go_with_one_is_refused_in_one_sentence(options, message):
    with pytest.raises(OptionError, match=message) as error:
        planned(**{"batch_size": None, **options})
    assert "\n" not in str(error.value)


CELLS = st.sampled_from(
    ["lr", "beta1", "eps", "optimizer", "adam", "sgd", "batch_size", "1e-3", "0.5", "", " ", "true"]
)
LINES = st.lists(st.lists(CELLS | st.text(max_size=4), max_size=4).map(",".join), max_size=4).map("\n".join)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=LINES.map(str.encode) | st.text().map(str.encode) | st.binary(max_size=60))
def test_any_file_is_understood_or_refused_in_one_sentence(content, tmp_path):
    file = tmp_path / "any.csv"
    file.write_bytes(content)
    said, tables = "", {}
    try:
        _, tables = configs_file.configurations(file, ["adam"])
    except OptionError as error:
        said = str(error)
    assert len(said.splitlines()) == (not tables)
    assert all(len(table) and not table.duplicated().any() for table in tables.values())


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(1e-6, 10), st.floats(0, 0.999), st.booleans()), min_size=1, max_size=6, unique=True
    )
)
def test_a_table_that_pandas_wrote_has_the_values_of_its_cells(rows):
    table = pd.DataFrame(rows, columns=["lr", "beta1", "amsgrad"])
    stream = io.StringIO()
    table.to_csv(stream, index=False)
    (whole,) = configs_file.configurations(table, ["adam"])[1].values()
    assert whole["lr"].tolist() == table["lr"].tolist()
    assert whole["amsgrad"].tolist() == [str(value).lower() for value in table["amsgrad"]]

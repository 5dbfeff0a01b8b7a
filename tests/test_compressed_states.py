"""The command that measures what states of one byte cost."""

import pandas as pd

from experiments import compressed


def test_the_page_has_bytes_and_losses_of_every_dtype(mnist_folder, tmp_path):
    out = tmp_path / "out"
    assert compressed.main(["--out", str(out), "--steps", "4", "--seeds", "2", "--data-dir", str(mnist_folder)]) == 0
    page = (out / "README.md").read_text(encoding="utf-8")
    for beginning in ("| Adam | float32 | 8.000 |", "| Adam | bfloat16 | 4.000 |", "| Adam | int8 | 2.03"):
        assert beginning in page
    assert "| Lion | int8 | 1.01" in page
    assert (out / "compressed.png").stat().st_size > 10_000
    curves = pd.read_csv(out / "compressed.csv")
    start = curves[curves["step"] == 0].groupby(["optimizer", "seed"])["eval_loss"]
    assert (start.nunique() == 1).all()  # the same weights for every dtype
    assert set(curves["states"]) == {"float32", "bfloat16", "int8"}

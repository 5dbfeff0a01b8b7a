"""Do page and figure of a search say what was found?"""

import pandas as pd
from matplotlib.patches import Rectangle

from experiments.tune import report
from experiments.tune.race import LaunchCase
from kernels.config import Config
from tests.kernels.devices import H100
from tests.tune.fake_gpu import CASE, PROVENANCE, FakeGPU


def test_page_and_figure_say_what_was_found(tmp_path):
    gpu = FakeGPU(Config(512, 4))
    cases = [CASE, *(LaunchCase("adam", "bfloat16-states", "medium", bucket) for bucket in (20, 16))]
    found = gpu.tune(cases, tmp_path, budget=10.0, table=tmp_path / "search.csv")
    text = report.write(found, H100, PROVENANCE, tmp_path)
    assert (tmp_path / "search.md").read_text() == text
    assert (tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
    for case in cases:
        assert f"| {case.work.key} | 512x4 |" in text
    assert text.index("medium/16 ") < text.index("medium/20 ")
    assert "SM 1980 MHz" in text
    table = pd.read_csv(tmp_path / "search.csv")
    drawn = report.search_figure(table, found.entries, H100)
    assert drawn is not None
    (*maps, _), (gains,) = (part.axes for part in drawn.subfigs)
    assert [ax.get_title("left") for ax in maps][:2] == ["1 block", "1 block, evict_first"]
    assert [label.get_text() for label in gains.get_yticklabels()] == sorted(found.entries)
    # The frame of the chosen one lies around its cell: a block of 512 at 4 elements a thread.
    boxes = [patch for patch in maps[0].patches if isinstance(patch, Rectangle)]
    (frame,) = [box for box in boxes if box.get_linestyle() == "-"]
    column, row = round(frame.get_x() + 0.45), round(frame.get_y() + 0.45)
    assert maps[0].get_xticklabels()[column].get_text() == "512"
    assert maps[0].get_yticklabels()[row].get_text() == "4"

"""Pictures: what their labels say once names of files are no mathematics."""

from longrope_export import plots
from tests.common import pico_factors


def test_no_label_is_left_as_mathematics() -> None:
    picture = plots.render(plots.factors_figure({r"a $\frac$ name": pico_factors()}), "svg").decode()
    assert r"<!-- a $\frac$ name, long -->" in picture
    assert "mathdefault" not in picture

"""Curves of several runs with their bands, as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qa_hooks._base.libraries import import_library

STYLES = ("-", "--", ":", "-.")  # of ten runs each
Line = Mapping[str, Any]  # {"step", "value", maybe "low", "high"}


def curve(runs: Mapping[str, Sequence[Line]], title: str, names: Sequence[str] = ()) -> str:
    """One chart.

    Args:
        runs: the values of one tag by the name of the run.
        title: of the chart.
        names: all runs of the page, by default those of the chart. A run's place among them gives its colour, so that
            it has one on the whole page; of several runs each chart has a legend.

    Returns:
        `<svg ...>...</svg>`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import_library("matplotlib", needed_by="qa-hooks report", install="pip install 'qa-hooks[plots]'")
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Letters stay letters, so that the page can be searched, and the same run gives the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure((5.2, 3.2), layout="constrained")
        canvas: Any = FigureCanvasSVG(figure)
        axes = figure.subplots()
        names = list(names or runs)
        for name, lines in runs.items():
            number = names.index(name)
            color, style = f"C{number % 10}", STYLES[number // 10 % len(STYLES)]
            steps, values = [line["step"] for line in lines], [_number(line, "value") for line in lines]
            label = name.replace("$", r"\$").lstrip("_") or name  # of a name with _ before it matplotlib shows none
            axes.plot(steps, values, style, color=color, label=label, marker=".")
            if any("low" in line for line in lines):
                low, high = ([_number(line, end) for line in lines] for end in ("low", "high"))
                axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(title.replace("$", r"\$"), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend(fontsize=7)
        text = io.StringIO()
        canvas.print_svg(text, metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.S)


def _number(line: Line, key: str) -> float:
    value = line.get(key)
    return float("nan") if value is None else float(value)

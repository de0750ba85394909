"""Curves of several runs with their bands, as SVG, drawn by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qa_hooks._base.libraries import import_library

Line = Mapping[str, Any]  # {"step", "value", maybe "low", "high"}


def curve(runs: Mapping[str, Sequence[Line]], title: str) -> str:
    """One chart.

    Args:
        runs: the values of one tag by the name of the run.
        title: of the chart.

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
        for number, (name, lines) in enumerate(runs.items()):
            color = f"C{number % 10}"
            steps = [line["step"] for line in lines]
            axes.plot(steps, [_number(line, "value") for line in lines], color=color, label=name, marker=".")
            if any("low" in line for line in lines):
                low, high = ([_number(line, end) for line in lines] for end in ("low", "high"))
                axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axes.set_title(title.replace("$", r"\$"), fontsize=9)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend(fontsize=7)
        text = io.StringIO()
        canvas.print_svg(text, metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.S)


def _number(line: Line, key: str) -> float:
    value = line.get(key)
    return float("nan") if value is None else float(value)

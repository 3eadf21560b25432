"""Draws how many times better one server is than its peers, a bar a workload. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from ratios import Ratio


def draw(compared: Mapping[str, Sequence[Ratio]], ours: str, path: Path) -> None:
    """One bar a figure and peer, with the rounds' range; the ending of ``path`` gives the format.

    Where less is better the bar is the inverse ratio, so that to the right of 1 is always better.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names = [f"{r.workload}: {r.figure}" for r in next(iter(compared.values()))]
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(names) * len(compared) + 1.6))
    height = 0.8 / len(compared)
    for n, (peer, ratios) in enumerate(compared.items()):
        for i, ratio in enumerate(ratios):
            if not ratio.values:
                continue
            values = [1 / v if ratio.less_is_better else v for v in ratio.values]
            middle, place = median(values), i + (n - (len(compared) - 1) / 2) * height
            axes.barh(
                place,
                middle - 1,
                height,
                left=1,
                color=f"C{n}",
                xerr=[[middle - min(values)], [max(values) - middle]],
                error_kw={"ecolor": "0.35", "lw": 1, "capsize": 2},
                label=f"over {peer}" if i == 0 else None,
            )
            axes.annotate(
                f"{middle:.2f}", (max(values + [1.0]), place), (6, 0),
                textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12)
    axes.axvline(1, color="black", lw=1)
    axes.set_xlabel(f"{ours} is so many times better (median of the rounds, and their range)")
    axes.legend(loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)

"""
Figures of a result, drawn by `matplotlib` (`pip install 'eagle-hf[viz]'`). Hatches, markers and line styles tell what
colours tell, so that they are readable in grey. Every function draws on `ax`, or on a new figure, and returns the axes.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .averages import ALL
from .methods import EAGLE, PLAIN


if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Dark to light, apart in grey and for colour-blind readers.
COLORS = ("#1b3a5c", "#c8553d", "#5fa8a0", "#e3b23c", "#9a9a9a", "#7a4b94")
HATCHES = ("", "//", "..", "xx", "--", "oo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))


def _new(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(7, 4), dpi=150, layout="constrained").add_subplot()


def _whole_numbers(ax: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _rows(result: dict[str, Any], temperature: float, method: str) -> dict[str, dict[str, Any]]:
    return {
        row["task"]: row
        for row in result["rows"]
        if row["temperature"] == temperature and row["method"] == method and "failures" not in row
    }


def draw_speedups(result: dict[str, Any], temperature: float = 0.0, ax: "Axes | None" = None) -> "Axes":
    """
    Draws the tokens per second over those of plain `generate`, by task and method, with quartiles of the repeats.
    """
    ax = _new(ax)
    methods = list(dict.fromkeys(row["method"] for row in result["rows"] if row["method"] != PLAIN))
    tasks = list(_rows(result, temperature, EAGLE))
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        rows = _rows(result, temperature, method)
        present = [j for j, task in enumerate(tasks) if task in rows]
        spreads = [rows[tasks[j]].get("speedup") or rows[tasks[j]]["throughput_ratio"] for j in present]
        exact = all("speedup" in rows[tasks[j]] for j in present)
        heights = [s["median"] for s in spreads]
        errors = [
            [abs(s["median"] - (s[q] or s["median"])) for s in spreads] for q in ("first_quartile", "third_quartile")
        ]
        bars = ax.bar(
            [j - 0.4 + width * (i + 0.5) for j in present], heights, width, yerr=errors, capsize=2, edgecolor="black",
            color=COLORS[i % len(COLORS)], hatch=HATCHES[i % len(HATCHES)], alpha=0.9, linewidth=0.6,
            label=method if exact else f"{method} (other tokens)",
        )  # fmt: skip
        ax.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=7, padding=2)
    ax.axhline(1, color="black", linewidth=1, linestyle=":")
    ax.set_xticks(range(len(tasks)), tasks, rotation=20)
    ax.set_ylabel("tokens/s over those of plain generate")
    ax.set_title(f"Speed by task, temperature {temperature:g}")
    ax.legend(fontsize=8)
    ax.margins(y=0.15)
    return ax


def draw_acceptance_by_depth(result: dict[str, Any], temperature: float = 0.0, ax: "Axes | None" = None) -> "Axes":
    """Draws the share of verifications that accept at least 1, 2, ... drafted tokens, by task."""
    ax = _new(ax)
    for i, (task, row) in enumerate(_rows(result, temperature, EAGLE).items()):
        shares = row["accepted_at_depth"]
        is_all = task == ALL
        ax.plot(
            range(1, len(shares) + 1), shares, marker=MARKERS[i % len(MARKERS)], linestyle=LINES[i % len(LINES)],
            color="black" if is_all else COLORS[i % len(COLORS)], linewidth=2.5 if is_all else 1.5,
            label=f"{task}, tau {row['tau']:.2f}" if row["tau"] is not None else task,
        )  # fmt: skip
    _whole_numbers(ax)
    ax.set_ylim(0, 1)
    ax.set_xlabel("depth (drafted tokens)")
    ax.set_ylabel("share of verifications that accept\nat least so many drafted tokens")
    ax.set_title(f"Acceptance by depth, temperature {temperature:g}")
    ax.legend(fontsize=8)
    return ax


def draw_acceptance_lengths(result: dict[str, Any], temperature: float = 0.0, ax: "Axes | None" = None) -> "Axes":
    """Draws how many tokens verifications add, over all tasks; the mean is tau."""
    ax = _new(ax)
    rows = _rows(result, temperature, EAGLE)
    row = rows.get(ALL) or next(iter(rows.values()))
    lengths = {int(length): count for length, count in row["lengths"].items()}
    total = sum(lengths.values())
    shares = [lengths[length] / total for length in lengths]
    bars = ax.bar(list(lengths), shares, color=COLORS[0], edgecolor="black")
    ax.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=8, padding=2)
    if row["tau"] is not None:
        ax.axvline(row["tau"], color="black", linestyle="--", zorder=0, label=f"tau, the mean: {row['tau']:.2f}")
        ax.legend(fontsize=8)
    _whole_numbers(ax)
    ax.set_xlabel("acceptance length (tokens that a verification adds)")
    ax.set_ylabel("share of verifications")
    ax.set_title(f"Distribution of acceptance lengths, temperature {temperature:g}")
    ax.margins(y=0.12)
    return ax


def draw_n_alpha(result: dict[str, Any], ax: "Axes | None" = None) -> "Axes":
    """Draws n-alpha by n, a line per temperature."""
    ax = _new(ax)
    for i, head in enumerate(result["head"]):
        ax.plot(
            [row["n"] for row in head["n_alpha"]], [row["alpha"] for row in head["n_alpha"]],
            color=COLORS[i % len(COLORS)], marker=MARKERS[i % len(MARKERS)], linestyle=LINES[i % len(LINES)],
            label=f"temperature {head['temperature']:g}",
        )  # fmt: skip
    _whole_numbers(ax)
    ax.set_ylim(0, 1)
    ax.set_xlabel("n (tokens of the chain that were accepted before)")
    ax.set_ylabel("n-alpha (share of next tokens accepted)")
    ax.set_title("Acceptance of chains, n-alpha")
    ax.legend(fontsize=8)
    return ax


def draw_calibration(result: dict[str, Any], ax: "Axes | None" = None) -> "Axes":
    """
    Draws the confidence of the head against acceptance (EAGLE-2, figure 6), a line per temperature, with bars of 95 %
    for the number of tokens in each bin.
    """
    ax = _new(ax)
    ax.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":", label="confidence = acceptance")
    for i, head in enumerate(result["head"]):
        bins = head["calibration"]["bins"]
        if not bins:
            continue
        errors = [1.96 * (row["acceptance"] * (1 - row["acceptance"]) / row["tokens"]) ** 0.5 for row in bins]
        ax.errorbar(
            [row["confidence"] for row in bins], [row["acceptance"] for row in bins], errors, capsize=2,
            marker=MARKERS[i % len(MARKERS)], linestyle=LINES[i % len(LINES)], color=COLORS[i % len(COLORS)],
            label=f"temperature {head['temperature']:g}, mean distance {head['calibration']['calibration_error']:.3f}",
        )  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_xlabel("confidence (probability that the head gives to a token)")
    ax.set_ylabel("share of these tokens that the target accepts")
    ax.set_title("Calibration of the head")
    ax.legend(fontsize=8)
    return ax


def draw_tree_sweep(result: dict[str, Any], temperature: float = 0.0, ax: "Axes | None" = None) -> "Axes":
    """Draws speed and tau against the size of the tree, over all tasks."""
    ax = _new(ax)
    points = []
    for name, facts in result["methods"].items():
        rows = _rows(result, temperature, name)
        row = rows.get(ALL) or next(iter(rows.values()), None)
        if facts.get("tree") and row is not None and "speedup" in row:
            points.append((*facts["tree"], row))
    points.sort(key=lambda point: point[:3])
    sizes = [point[0] for point in points]
    ax.plot(sizes, [point[3]["speedup"]["median"] for point in points], marker="o", color=COLORS[0], label="speedup")
    for nodes, depth, width, row in points:
        ax.annotate(
            f"{nodes}/{depth}/{width}", (nodes, row["speedup"]["median"]), fontsize=7, xytext=(3, 4),
            textcoords="offset points",
        )  # fmt: skip
    ax.axhline(1, color="black", linewidth=1, linestyle=":")
    _whole_numbers(ax)
    ax.margins(x=0.1, y=0.15)
    ax.set_xlabel("size of the tree in nodes (labels: nodes / depth / width)")
    ax.set_ylabel("speedup over plain generate")
    other = ax.twinx()
    other.plot(sizes, [p[3]["tau"] for p in points], marker="s", linestyle="--", color=COLORS[1], label="tau (right)")
    other.set_ylabel("tokens per verification (tau)")
    lines = [*ax.get_lines()[:1], *other.get_lines()]
    ax.legend(lines, [str(line.get_label()) for line in lines], fontsize=8, loc="lower right")
    ax.set_title(f"Size of the tree, temperature {temperature:g}")
    return ax


def save_figures(result: dict[str, Any], folder: str | Path) -> list[Path]:
    """
    Draws all figures of a result that it has the measurements for.

    Args:
        result (`dict`): From [`run_benchmark`] or [`load_result`].
        folder (`str` or `Path`): Gets a PNG per figure.

    Returns:
        `list[Path]`: The files.

    Raises:
        `ImportError`: if `matplotlib` is not installed.
    """
    figures: dict[str, Callable[[], Any]] = {}
    for temperature in dict.fromkeys(row["temperature"] for row in result["rows"]):
        for name, draw in (
            ("speedup", draw_speedups),
            ("acceptance_by_depth", draw_acceptance_by_depth),
            ("acceptance_lengths", draw_acceptance_lengths),
        ):
            figures[f"{name}_temperature_{temperature:g}"] = partial(draw, result, temperature)
        if any(facts.get("tree") for facts in result["methods"].values()):
            figures[f"tree_sizes_temperature_{temperature:g}"] = partial(draw_tree_sweep, result, temperature)
    if result["head"]:
        figures["n_alpha"] = partial(draw_n_alpha, result)
        figures["calibration"] = partial(draw_calibration, result)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw_figure in figures.items():
        path = folder / f"{name}.png"
        draw_figure().figure.savefig(path)
        paths.append(path)
    return paths

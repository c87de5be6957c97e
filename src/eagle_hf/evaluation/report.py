"""The result as Markdown tables, every column with its unit."""

from typing import Any

from .methods import EAGLE, PLAIN


def markdown_report(result: dict[str, Any]) -> str:
    """
    Writes a result as Markdown.

    Args:
        result (`dict`): From [`run_benchmark`] or [`load_result`].
    """
    settings = result["settings"]
    target, draft = (result[name]["name"] for name in ("target", "draft"))
    lines = [
        f"# {_short(draft)} on {_short(target)}",
        "",
        f"{result['hardware']}; {result['dtype']}; {conditions(result)}.",
        "",
        "```bash",
        result["command"],
        "```",
        "",
        "## Speed",
        "",
        *speed_table(result),
        "",
        f"Medians of {settings['repeats']} repeats with quartiles in brackets, all methods in turns on each prompt; "
        "times contain the prompt's forward. The interval is that of 95 % of selections of as many prompts (bootstrap)."
        " A speedup is stated only where the token ids are those of plain `generate`. Tokens per verification are tau: "
        "over all verifications, and the mean of the prompts' own.",
    ]
    lines += [
        "",
        "## Acceptance by depth",
        "",
        "Share of verifications that accept at least so many drafted tokens.",
        "",
    ]
    lines += depth_table(result)
    for head in result["head"]:
        lines += ["", f"## The head at temperature {head['temperature']:g}", "", *_head_tables(head)]
    lines += _left_out(result)
    return "\n".join(lines) + "\n"


def conditions(result: dict[str, Any]) -> str:
    """Returns how it was measured, in words."""
    settings = result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    text = f"up to {settings['max_new_tokens']} new tokens, seed {settings['seed']}; {versions}"
    if result["resumed_prompts"]:
        text += f"; {result['resumed_prompts']} prompts were measured before an interruption"
    return text


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def number(spread: dict[str, float | None], digits: int = 2) -> str:
    """Returns a median with its quartiles."""
    text = f"{spread['median']:.{digits}f}"
    if spread["first_quartile"] is None:
        return text
    return f"{text} [{spread['first_quartile']:.{digits}f}, {spread['third_quartile']:.{digits}f}]"


def speed_table(result: dict[str, Any]) -> list[str]:
    """Returns a row per task, temperature and method."""
    lines = [
        "| task | temperature | method | prompts | speedup | interval | tokens/s | tokens per verification "
        "| tokens per target forward | token ids |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [row["task"], f"{row['temperature']:g}", row["method"], str(row["prompts"])]
        if "failures" in row:
            cells += [f"failed {row['failures']} times: {row['first_failure']}", *[""] * 5]
        else:
            cells += _figures(row)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def _figures(row: dict[str, Any]) -> list[str]:
    if row["method"] == PLAIN:
        speedup, interval = "1", ""
    else:
        is_exact = "speedup" in row
        speedup = number(row["speedup"]) if is_exact else f"none; throughput {number(row['throughput_ratio'])} times"
        interval = "{:.2f} to {:.2f}".format(*row["speedup_interval" if is_exact else "throughput_ratio_interval"])
    tau = ""
    if row.get("tau") is not None:
        tau = f"{row['tau']:.2f}, {row['tau_mean_over_prompts']:.2f}"
    differ, ties, turns = row["texts_that_differ"], row["of_these_at_ties"], row["turns"]
    if not differ:
        same = f"all of {row['new_tokens']:,} equal" if row["method"] != PLAIN else f"{row['new_tokens']:,}"
    else:
        same = f"{differ} of {turns} texts differ" + (f", {ties} at ties" if ties else "")
    per_second = number(row["tokens_per_second"], 1)
    return [speedup, interval, per_second, tau, f"{row['tokens_per_target_forward']:.2f}", same]


def depth_table(result: dict[str, Any]) -> list[str]:
    """Returns the acceptance by depth with the head's own tree."""
    rows = [row for row in result["rows"] if row["method"] == EAGLE]
    deepest = max((len(row["accepted_at_depth"]) for row in rows), default=0)
    lines = [
        f"| task | temperature |{''.join(f' {depth} |' for depth in range(1, deepest + 1))}",
        f"|---|---|{'---|' * deepest}",
    ]
    for row in rows:
        shares = [f"{share:.2f}" for share in row["accepted_at_depth"]]
        cells = [row["task"], f"{row['temperature']:g}", *shares, *[""] * (deepest - len(shares))]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _head_tables(head: dict[str, Any]) -> list[str]:
    lines = ["Acceptance of the next token of a chain whose first n tokens were accepted (n-alpha):", ""]
    lines += ["| n | alpha | chains |", "|---|---|---|"]
    lines += [f"| {row['n']} | {row['alpha']:.3f} | {row['trials']:,} |" for row in head["n_alpha"]]
    calibration = head["calibration"]
    if calibration["tokens"]:
        lines += [
            "",
            "Confidence of the head in drafted tokens, and how often the target accepted them; over "
            f"{calibration['tokens']:,} tokens they differ by {calibration['calibration_error']:.3f} on average "
            "(expected calibration error):",
            "",
            "| confidence | accepted | tokens |",
            "|---|---|---|",
        ]
        lines += [
            f"| {row['confidence']:.3f} | {row['acceptance']:.3f} | {row['tokens']:,} |" for row in calibration["bins"]
        ]
    return lines


def _left_out(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, reason in result["baselines_left_out"].items():
        lines += ["", f"The baseline {name} was not measured: {reason}"]
    if result["skipped"]:
        lines += ["", f"Left out ({len(result['skipped'])}):", ""]
        lines += [f"* {entry['place']}: {entry['reason']}" for entry in result["skipped"]]
    return lines

"""The results of `gpu_proof.py` as a page and as text."""

from html import escape
from importlib.util import find_spec
from typing import Any

from agentrl.report.charts import Chart, Series
from agentrl.report.page import assemble, render

_COLUMNS = ("tokens_per_s", "share", "share_with_recomputation", "peak_gib", "dry_run_gib", "energy_s", "first_s")
_RULES = ("single", "naive", "dgg", "kl_rate")
Table = tuple[str, list[str], list[list[str]]]
"""Title, headings, rows."""


def tables(results: dict[str, Any]) -> list[Table]:
    """Everything measured, as tables of text."""
    found: list[Table] = []
    if "card" in results and "error" not in results["card"]:
        found.append(("The card", ["what", "value"], _flat(results["card"])))
    rows = [
        [case, name, *_update_cells(entry)]
        for stage in ("learner", "compiled")
        for case, entries in results.get(stage, {}).items()
        if isinstance(entries, dict)
        for name, entry in entries.items()
    ]
    if rows:
        found.append(("Updates", ["rows", "update", *_COLUMNS], rows))
    for name in ("agreement", "engine"):
        if name in results and "error" not in results[name]:
            found.append((name.capitalize(), ["what", "value"], _flat(results[name])))
    quick = {k: v for k, v in results.get("quickstart", {}).items() if not isinstance(v, dict)}
    whole = results.get("quickstart", {}).get("whole", {})
    if whole.get("evaluations"):
        quick |= {
            "batches": whole["batches"],
            "success before": whole["evaluations"][0][1],
            "after": whole["evaluations"][-1][1],
        }
    if quick:
        found.append(("Quickstart", ["what", "value"], _flat(quick)))
    runs = [
        [name, str(run["batches"]), *(_number(run["evaluations"][i][1]) if run["evaluations"] else "" for i in (0, -1)),
         *(_number(run[key]) for key in ("optimizer_steps", "discarded", "rollout_s", "update_s"))]
        for name, run in results.get("runs", {}).items() if isinstance(run, dict) and run.get("batches")
    ]  # fmt: skip
    if runs:
        headings = ["run", "batches", "before", "last evaluation", "steps", "discarded", "rollout s", "update s"]
        found.append(("SmolLM2-135M", headings, runs))
    return found


def curves(results: dict[str, Any]) -> list[Chart]:
    """Training success of the runs, one chart a task."""
    charts = []
    runs = {name: run for name, run in results.get("runs", {}).items() if isinstance(run, dict) and run.get("success")}
    for task in dict.fromkeys(name.split("-")[0] for name in runs):
        series = [
            Series(
                name.removeprefix(f"{task}-"),
                *zip(*run["success"], strict=True),
                color=_RULES.index(name.split("-")[1]),
            )
            for name, run in runs.items()
            if name.startswith(f"{task}-")
        ]
        charts.append(Chart(f"{task}: success of the rollouts", series, format="percent"))
    return charts


def page(results: dict[str, Any]) -> str:
    """One HTML page without any way to the network."""
    parts = [
        f"<section><h2>{escape(title)}</h2>{_html(headings, rows)}</section>"
        for title, headings, rows in tables(results)
    ]
    if find_spec("vl_convert"):
        parts += [str(render("figure.html", chart=chart)) for chart in curves(results)]
    else:
        parts.append("<p>Curves need vl-convert-python, which is not installed here; runs.json holds them.</p>")
    errors = {name: found["error"] for name, found in results.items() if isinstance(found, dict) and "error" in found}
    parts += [
        f"<section><h2>{escape(name)} failed</h2><pre>{escape(error)}</pre></section>" for name, error in errors.items()
    ]
    body = "".join(parts)
    return (
        assemble("Proof on a GPU", body)
        if find_spec("vl_convert")
        else f"<!doctype html><title>Proof on a GPU</title>{body}"
    )


def text(results: dict[str, Any]) -> str:
    """The same tables for a terminal, as Markdown."""
    lines = []
    for title, headings, rows in tables(results):
        lines += ["", f"## {title}", "", "| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _update_cells(entry: dict[str, Any]) -> list[str]:
    if "seconds" in entry:
        return [_number(entry.get(column)) for column in _COLUMNS]
    return [next(iter(entry)), *[""] * (len(_COLUMNS) - 1)]


def _html(headings: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _flat(tree: dict[str, Any], prefix: str = "") -> list[list[str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}, ")
        else:
            rows.append([prefix + key, _number(value)])
    return rows


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

"""The report of one run, or of several side by side: charts, scores, differences between configs, and events."""

from collections.abc import Mapping, Sequence
from typing import Any

from modernbert.reporting.charts import RUN_COLORS, Panel, dash_of, draw_lines
from modernbert.reporting.report_page import Chart, Figure, Key, Report, Section, Table, format_duration, format_share
from modernbert.reporting.run_panels import (
    dev_panels,
    heldout_panels,
    loss_panel,
    optimizer_panels,
    position_panels,
    source_panels,
    speed_panels,
)
from modernbert.reporting.run_reader import Run

__all__ = ["build_report", "loss_section", "panel_section", "speed_section"]

NONE = "–"
MAX_EVENTS = 50
_SPEED_NOTE = "Batches hold no padding. Fill: the share of the token budget of a batch that holds tokens."
# The output folder does not change the result of a run.
_NOT_COMPARED = ("output",)
_ONLY_IN_PRETRAINING = ("best held-out", "MFU", "skipped", "rollbacks")


def build_report(runs: Sequence[Run]) -> Report:
    """Return the report of some runs, which must have different names."""
    single = runs[0] if len(runs) == 1 else None
    return Report(
        title=single.name if single else f"{len(runs)} runs",
        subtitle=[_state(single)] if single else [],
        headline=_headline(single) if single else (),
        keys=[] if single else [Key(run.name, _color(number), dash_of(number)) for number, run in enumerate(runs)],
        sections=[part for part in _sections(runs) if part.charts or part.tables],
        facts=_facts(single) if single else {},
    )


def loss_section(runs: Sequence[Run], tables: Sequence[Table] = ()) -> Section:
    """Return the section of the training loss."""
    title = "Training loss over the tokens seen"
    chart = _chart([loss_panel(runs)], title, _loss_note(runs), height=4.2)
    return Section("Training", charts=[chart], tables=tables)


def speed_section(runs: Sequence[Run]) -> Section:
    """Return the section of speed, memory and fill."""
    return panel_section("Speed and memory", speed_panels(runs), _SPEED_NOTE)


def panel_section(title: str, panels: Sequence[Panel], note: str = "") -> Section:
    """Return a section with one chart, or an empty one without panels."""
    return Section(title, charts=[_chart(panels, title, note)] if panels else ())


def _sections(runs: Sequence[Run]) -> list[Section]:
    several, events = len(runs) > 1, _events(runs)
    overview = [_overview(runs), _scores(runs), _differences(runs) if several else None]
    return [
        Section("Comparison" if several else "Summary", tables=[table for table in overview if table]),
        loss_section(runs, [events] if events else []),
        panel_section("Dev set", dev_panels(runs), "Scores on rows that are not trained on; the best model is kept."),
        panel_section("Held-out text", heldout_panels(runs), "Loss on text that is not trained on."),
        panel_section(
            "Loss by position",
            position_panels(runs),
            "Held-out loss by position in the document: hollow dots at the first evaluation, full dots at the last. "
            "After a successful context extension, late positions have improved most.",
        ),
        panel_section("Optimization", optimizer_panels(runs)),
        speed_section(runs),
        panel_section(
            "Epochs over each source", source_panels(runs), "1: each document was seen once. Each phase starts at 0."
        ),
    ]  # fmt: skip


def _chart(panels: Sequence[Panel], title: str, note: str, height: float = 2.3) -> Chart:
    wide, narrow = (draw_lines(panels, title, narrow=is_narrow, height=height) for is_narrow in (False, True))
    return Chart(wide, narrow, note)


def _color(number: int) -> str:
    return list(RUN_COLORS)[number % len(RUN_COLORS)]


def _loss_note(runs: Sequence[Run]) -> str:
    scored = any(run.scores for run in runs)
    notes = [f"Thick lines: running mean{'; dots: mean loss on held-out text' if scored else ''}."]
    if any(run.steps[-1].get("phase") != run.steps[0].get("phase") for run in runs if run.steps):
        notes.append("Vertical lines: a new phase.")
    if any(run.abandoned for run in runs):
        notes.append("Dotted lines: steps that a rollback undid; no other chart shows them.")
    if any(run.events for run in runs):
        notes.append("At the lower edge: × a skipped step, ◂ a rollback.")
    return " ".join(notes)


def _overview(runs: Sequence[Run]) -> Table:
    """Return a row for each run."""
    note = "Open: still running, or stopped. Training loss: end of the running mean."
    columns = list(_row(runs[0]))
    if all(run.is_finetuning for run in runs):
        columns = [name for name in columns if name not in _ONLY_IN_PRETRAINING]
        note += " Tokens/s: median."
    else:
        note += " Held-out: mean loss over all sources at the first of their lengths. Tokens/s and MFU: medians."
    rows = [[cell for name, cell in _row(run).items() if name in columns] for run in runs]
    return Table("Runs" if len(runs) > 1 else "Run", columns, rows, note)


def _scores(runs: Sequence[Run]) -> Table | None:
    """Return the best scores on the dev set and the scores on the test set of fine-tuning runs."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    for run in runs:
        if run.best_dev is not None:
            step = run.best_dev[0]
            scores = next(row for row in run.dev if row["step"] == step)
            found.append((run.name, f"dev, step {step:,}", {name: scores.get(name) for name in run.metrics}))
        test = run.result.get("test") or {}
        # A retriever has scores for each collection.
        by_name = {f"test, {name}": each for name, each in test.items() if isinstance(each, Mapping)}
        found += [(run.name, name, scores) for name, scores in (by_name or ({"test": test} if test else {})).items()]
    names = list(dict.fromkeys(name for *_, scores in found for name in scores))
    rows = [[run, split, *(_score(scores.get(name)) for name in names)] for run, split, scores in found]
    note = "Dev: the scores of the checkpoint that is kept. The first metric selects it."
    return Table("Scores", ["run", "rows", *names], rows, note) if rows else None


def _score(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return NONE if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _row(run: Run) -> dict[str, str]:
    best = _best(run)
    speed, share = run.typical("tokens_per_s"), run.typical("mfu")
    return {
        "run": run.name,
        "state": "finished" if run.is_finished else "open",
        "steps": f"{_last_step(run):,}",
        "tokens": f"{run.tokens:,}",
        "time": format_duration(run.elapsed_s),
        "training loss": _loss(run.final_loss),
        "best held-out": f"{best[1]:.3f}" if best else NONE,
        "tokens/s": NONE if speed is None else f"{speed:,.0f}",
        "MFU": NONE if share is None else format_share(share),
        "skipped": f"{run.count('skipped'):,}",
        "rollbacks": f"{run.count('rollback'):,}",
    }


def _headline(run: Run) -> list[Figure]:
    best, speed, share = _best(run), run.typical("tokens_per_s"), run.typical("mfu")
    figures = [Figure("tokens", _large(run.tokens), f"{_last_step(run):,} steps, {format_duration(run.elapsed_s)}")]
    if run.final_loss is not None:
        figures.append(Figure("training loss", _loss(run.final_loss), "end of the running mean"))
    if best:
        figures.append(Figure("best held-out loss", f"{best[1]:.3f}", f"at step {best[0]:,}"))
    if run.best_dev is not None:
        step, score = run.best_dev
        figures.append(Figure(f"best {run.metrics[0]} on the dev set", f"{score:.4f}", f"at step {step:,}"))
    if speed is not None:
        note = "median" if share is None else f"median; {format_share(share)} of the device's peak"
        figures.append(Figure("tokens per second", f"{speed:,.0f}", note))
    return figures


def _state(run: Run) -> str:
    if run.is_finished:
        stopped = run.result.get("stopped")
        return f"Finished: stopped early, {stopped}." if stopped else "Finished."
    phase = f", in the phase {run.steps[-1]['phase']}" if run.steps and "phase" in run.steps[-1] else ""
    return f"Not finished: at step {_last_step(run):,}{phase}."


def _events(runs: Sequence[Run]) -> Table | None:
    rows = []
    for run in runs:
        for row in run.events:
            event = f"rollback to step {row['to_step']:,}" if row["kind"] == "rollback" else "step skipped"
            numbers = [_loss(row.get("loss")), _loss(row.get("grad_norm"))]
            rows.append([run.name, str(row.get("phase", "")), f"{row['step']:,}", event, *numbers, row["reason"]])
    columns = ["run", "phase", "step", "event", "loss", "gradient norm", "reason"]
    note = f"The last {MAX_EVENTS} of {len(rows):,}; log.jsonl has all." if len(rows) > MAX_EVENTS else ""
    return Table("Skipped steps and rollbacks", columns, rows[-MAX_EVENTS:], note) if rows else None


def _differences(runs: Sequence[Run]) -> Table | None:
    """Return the fields in which configs, or the machines that ran them, differ."""
    described = [{**run.config, **_start_fields(run)} for run in runs]
    fields = dict.fromkeys(field for each in described for field in each if field not in _NOT_COMPARED)
    rows = [
        [field, *(str(each.get(field, NONE)) for each in described)]
        for field in fields
        if len({str(each.get(field, NONE)) for each in described}) > 1
    ]
    columns = ["field", *(run.name for run in runs)]
    return Table("Differences", columns, rows, is_text=True) if rows else None


def _facts(run: Run) -> Mapping[str, Sequence[tuple[str, str]]]:
    groups: dict[str, list[tuple[str, str]]] = {}
    for field, value in run.config.items():
        group, _, name = field.rpartition(".") if field.startswith("phases.") else ("config", "", field)
        groups.setdefault(group.replace("phases.", "phase "), []).append((name, str(value)))
    if run.start:
        groups["start"] = [(name.removeprefix("start."), str(value)) for name, value in _start_fields(run).items()]
    return groups


def _start_fields(run: Run) -> dict[str, Any]:
    return {f"start.{key}": value for key, value in run.start.items() if key != "kind"}


def _best(run: Run) -> tuple[int, float] | None:
    scored = [(loss, row["step"]) for row, loss in run.scores]
    return (min(scored)[1], min(scored)[0]) if scored else None


def _last_step(run: Run) -> int:
    return max((row["step"] for row in run.steps), default=0)


def _loss(loss: float | None) -> str:
    return NONE if loss is None else f"{loss:.3f}"


def _large(number: int) -> str:
    for size, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,}"

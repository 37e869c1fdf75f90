"""What is to be seen of one run, or of several side by side.

In: runs. Out: the `Report` of them: charts on common axes, a table with a row for each, where their configs differ,
what happened on the way. A file of its own because it decides what is shown, and neither how it is read nor drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from modernbert.reporting.curves import (
    Panel,
    dash_of,
    dev_panels,
    draw,
    heldout_panels,
    loss_panel,
    position_panels,
    source_panels,
    step_panels,
)
from modernbert.reporting.drawing import RUNS
from modernbert.reporting.report_page import Chart, Figure, Key, Report, Section, Table, write_duration, write_percent
from modernbert.reporting.run_reader import Run

__all__ = ["compare"]

# Where a run is computed and kept says nothing of what it computes.
_PLACES = ("output",)
NONE = "–"
MOST_EVENTS = 50
_OF_PRETRAINING = ("best held-out", "MFU", "skipped", "rollbacks")


def compare(runs: Sequence[Run]) -> Report:
    """Return the report of some runs, whose names must differ."""
    single = runs[0] if len(runs) == 1 else None
    return Report(
        title=single.name if single else f"{len(runs)} runs",
        subtitle=[_state(single)] if single else [],
        headline=_headline(single) if single else (),
        keys=() if single else [_key(number, run) for number, run in enumerate(runs)],
        sections=[part for part in _sections(runs) if part.charts or part.tables],
        facts=_facts(single) if single else {},
    )


def _sections(runs: Sequence[Run]) -> list[Section]:
    led, speed = step_panels(runs)
    events, differences = _events(runs), _differences(runs) if len(runs) > 1 else None
    overview = [table for table in (_overview(runs), _scores(runs), differences) if table]
    return [
        Section("Side by side" if len(runs) > 1 else "In numbers", tables=overview),
        Section(
            "How they learned" if len(runs) > 1 else "How it learned",
            [_chart([loss_panel(runs)], "Training loss over the tokens seen", _loss_note(runs), height=4.2)],
            [events] if events else [],
        ),
        _section(
            "On dev rows", dev_panels(runs), "Scores on rows that are never trained on; the best weights are kept."
        ),
        _section("On held-out text", heldout_panels(runs), "Loss on text that is never trained on."),
        _section(
            "Far into a document",
            position_panels(runs),
            "Loss by the place in the document: hollow dots as it was first scored, full dots as it was last. "
            "After a good context extension the later places have gained most.",
        ),
        _section("Rate, gradient, batch", led, ""),
        _section("Speed and fill", speed, "Nothing in a batch is padding; what is left of its budget is empty."),
        _section(
            "Times through each source",
            source_panels(runs),
            "At 1 each document was seen once; each phase counts anew.",
        ),
    ]


def _section(title: str, panels: Sequence[Panel], note: str) -> Section:
    return Section(title, [_chart(panels, title, note)] if panels else ())


def _chart(panels: Sequence[Panel], title: str, note: str, height: float = 2.3) -> Chart:
    wide, narrow = (draw(panels, title, narrow=is_narrow, height=height) for is_narrow in (False, True))
    return Chart(wide, narrow, note)


def _loss_note(runs: Sequence[Run]) -> str:
    scored = any(run.scores for run in runs)
    notes = [f"Thick lines are a running mean{', dots the mean loss on held-out text' if scored else ''}."]
    if any(run.steps[-1].get("phase") != run.steps[0].get("phase") for run in runs if run.steps):
        notes.append("Upright lines: a new phase.")
    if any(run.abandoned for run in runs):
        notes.append("Dotted pieces were abandoned when a run went back to a checkpoint; no other chart has them.")
    if any(run.events for run in runs):
        notes.append("At the lower edge: × a step that was not taken, ◂ a return to a checkpoint.")
    return " ".join(notes)


def _key(number: int, run: Run) -> Key:
    return Key(run.name, list(RUNS)[number % len(RUNS)], dash_of(number))


def _overview(runs: Sequence[Run]) -> Table:
    """Put each run in a row; a single one is read more easily down than across."""
    columns = [
        "run", "state", "steps", "tokens", "time", "training loss", "best held-out", "tokens/s", "MFU", "skipped",
        "rollbacks",
    ]  # fmt: skip
    note = (
        "Open: going on, or stopped. Training loss: the end of its running mean. Held-out: the mean loss over all "
        "sources at the first of their lengths. Tokens/s and MFU: medians."
    )
    if all(run.is_tuning for run in runs):  # which has neither held-out text nor returns to a checkpoint
        columns = [name for name in columns if name not in _OF_PRETRAINING]
        note = "Open: going on, or stopped. Training loss: the end of its running mean. Tokens/s: median."
    rows = [[cell for name, cell in _row(run).items() if name in columns] for run in runs]
    return Table("The runs" if len(runs) > 1 else "The run", columns, rows, note)


def _scores(runs: Sequence[Run]) -> Table | None:
    """Put the best scores on dev rows and those on test rows of fine-tuning runs in rows."""
    found: list[tuple[str, str, Mapping[str, Any]]] = []
    for run in runs:
        if run.best_dev is not None:
            step = run.best_dev[0]
            scores = next(row for row in run.dev if row["step"] == step)
            found.append((run.name, f"dev, step {step:,}", {name: scores.get(name) for name in run.metrics}))
        test = run.result.get("test") or {}
        # Of a retriever, the scores of each collection.
        by_name = {f"test, {name}": each for name, each in test.items() if isinstance(each, Mapping)}
        found += [(run.name, name, scores) for name, scores in (by_name or ({"test": test} if test else {})).items()]
    names = list(dict.fromkeys(name for *_, scores in found for name in scores))
    rows = [[run, split, *(_score(scores.get(name)) for name in names)] for run, split, scores in found]
    note = "Of the dev rows the scores of the weights that are kept. The first score decides."
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
        "time": write_duration(run.elapsed_s),
        "training loss": _loss(run.final_loss),
        "best held-out": f"{best[1]:.3f}" if best else NONE,
        "tokens/s": NONE if speed is None else f"{speed:,.0f}",
        "MFU": NONE if share is None else write_percent(share),
        "skipped": f"{run.count('skipped'):,}",
        "rollbacks": f"{run.count('rollback'):,}",
    }


def _headline(run: Run) -> list[Figure]:
    best, speed, share = _best(run), run.typical("tokens_per_s"), run.typical("mfu")
    figures = [Figure("tokens", _large(run.tokens), f"{_last_step(run):,} steps, {write_duration(run.elapsed_s)}")]
    if run.final_loss is not None:
        figures.append(Figure("training loss", _loss(run.final_loss), "end of the running mean"))
    if best:
        figures.append(Figure("best held-out loss", f"{best[1]:.3f}", f"at step {best[0]:,}"))
    if run.best_dev is not None:
        step, score = run.best_dev
        figures.append(Figure(f"best {run.metrics[0]} on dev rows", f"{score:.4f}", f"at step {step:,}"))
    if speed is not None:
        note = "median" if share is None else f"median; {write_percent(share)} of the device's peak"
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
            what = f"back to step {row['to_step']:,}" if row["kind"] == "rollback" else "step skipped"
            numbers = [_loss(row.get("loss")), _loss(row.get("grad_norm"))]
            rows.append([run.name, str(row.get("phase", "")), f"{row['step']:,}", what, *numbers, row["reason"]])
    columns = ["run", "phase", "step", "what happened", "loss", "gradient norm", "why"]
    hidden = len(rows) - MOST_EVENTS
    note = f"The last {MOST_EVENTS} of {len(rows):,}; log.jsonl has all." if hidden > 0 else ""
    return Table("What happened on the way", columns, rows[-MOST_EVENTS:], note) if rows else None


def _differences(runs: Sequence[Run]) -> Table | None:
    """Show the fields in which configs, or the machines that ran them, differ."""
    described = [{**run.config, **_started(run)} for run in runs]
    fields = dict.fromkeys(field for each in described for field in each if field not in _PLACES)
    rows = [
        [field, *(str(each.get(field, NONE)) for each in described)]
        for field in fields
        if len({str(each.get(field, NONE)) for each in described}) > 1
    ]
    return Table("Where they differ", ["field", *(run.name for run in runs)], rows, is_words=True) if rows else None


def _facts(run: Run) -> Mapping[str, Sequence[tuple[str, str]]]:
    groups: dict[str, list[tuple[str, str]]] = {}
    for field, value in run.config.items():
        group, _, name = field.rpartition(".") if field.startswith("phases.") else ("config", "", field)
        groups.setdefault(group.replace("phases.", "phase "), []).append((name, str(value)))
    if run.start:
        groups["started with"] = [(name.removeprefix("start."), str(value)) for name, value in _started(run).items()]
    return groups


def _started(run: Run) -> dict[str, Any]:
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

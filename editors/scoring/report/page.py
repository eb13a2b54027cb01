"""A report card as one HTML page that opens offline: no script, nothing from outside."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from editors.scoring.report.card import Example, ReportCard, ReportRow
from editors.scoring.report.damage import Damage
from editors.scoring.report.measures import KL, NEWLY_SAYS_TARGET, SAYS_TARGET, TOKEN_AGREEMENT
from editors.scoring.report.placebo import RANDOM_UPDATE, SHUFFLED_TARGET
from editors.scoring.report.rows import Expects, kind_of

_SECTIONS: dict[Expects, tuple[str, str]] = {
    "target": ("Does the edit hold?", "Share of answers that are exactly the target."),
    "keep": (
        "Does everything else stay?",
        "Share of whole answers that are the same as before the edit. In orange: the target is said where it was not.",
    ),
    "answer": ("Does what follows from it follow?", "Share of answers that are exactly the data's answer."),
}
_PLACEBOS = {SHUFFLED_TARGET: "another edit's target", RANDOM_UPDATE: "random update"}

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--paper:#fff;--card:#f4f6f9;--line:#d9dee6;--good:#2b6cb0;
--old:#a3adba;--warn:#c8500a}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa5b4;--paper:#12161c;--card:#1b212a;--line:#313a47;
--good:#63a4ea;--old:#657184;--warn:#f58a3c}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:60rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);
background:var(--paper)}
h1{font-size:1.5rem;margin:.5rem 0;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2rem 0 .25rem}h3{font-size:1rem;margin:0}
p{margin:.25rem 0}.soft{color:var(--soft);font-size:.875rem}
.row{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.75rem;margin:.6rem 0}
.numbers{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.875rem}
.warn{color:var(--warn);font-weight:600}
svg{display:block;width:100%;height:1.6rem;margin:.3rem 0}
details{margin-top:.4rem}summary{cursor:pointer}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.875rem;width:100%}
th,td{text-align:left;vertical-align:top;padding:.3rem .5rem;border-bottom:1px solid var(--line)}
td{white-space:pre-wrap;overflow-wrap:anywhere;min-width:6rem}
.good{color:var(--good)}.bad{color:var(--warn)}
dt{font-weight:600}dd{margin:0 0 .4rem}
"""


def report_page(card: ReportCard) -> str:
    """The page. Everything that comes from data or a model is escaped."""
    title = f"Report card: {card.method} on {card.model}"
    parts = [f"<h1>{escape(title)}</h1>", _facts(card)]
    for expects, (heading, meaning) in _SECTIONS.items():
        rows = [row for row in card.rows if row.expects == expects]
        if rows:
            parts += [f"<h2>{heading}</h2>", f'<p class="soft">{meaning}</p>', *map(_row, rows)]
    parts += [_abilities(card), _damage(card.damage), _together(card), _protocol(card)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _facts(card: ReportCard) -> str:
    return (
        f'<p class="soft">{card.cases} edit(s), seed {card.seed}, {escape(card.created)}. Grey bar: before the edit. '
        "Thin line: 95 % interval over edits.</p>"
    )


def _row(row: ReportRow) -> str:
    number = row.after[row.headline]
    before = None if row.expects == "keep" else row.before.get(row.headline)
    said = row.after[NEWLY_SAYS_TARGET if row.expects == "keep" else SAYS_TARGET]
    notes = [f"<b>{_percent(number.mean)}</b> ({_percent(number.low)}–{_percent(number.high)})"]
    if before is not None:
        notes.append(f"before {_percent(before)}")
    if row.expects == "keep":
        notes.append(f'<span class="{_warning(said.mean)}">says the target {_percent(said.mean)}</span>')
        notes.append(f"tokens kept {_percent(row.after[TOKEN_AGREEMENT].mean)}, KL {row.after[KL].mean:.3f}")
    else:
        notes.append(f"says the target {_percent(said.mean)}")
    notes += [
        f"{_PLACEBOS.get(kind, escape(kind))}: {_percent(each.values[row.headline])} (n {each.n})"
        for kind, each in row.placebos.items()
        if each is not None
    ]
    left_out = f", {row.left_out} too long" if row.left_out else ""
    return (
        f'<section class="row"><h3>{escape(row.title)}</h3>{_bar(row, before)}'
        f'<div class="numbers">{"".join(f"<span>{note}</span>" for note in notes)}'
        f'<span class="soft">n {row.n} of {row.cases} edit(s){left_out}</span></div>{_examples(row)}</section>'
    )


def _bar(row: ReportRow, before: float | None) -> str:
    """The headline with its interval; below it what was before, or how often the target is said."""
    number, said = row.after[row.headline], row.after[NEWLY_SAYS_TARGET if row.expects == "keep" else SAYS_TARGET].mean
    second, colour = (said, "--warn") if before is None else (before, "--old")
    label = escape(f"{row.title}: {_percent(number.mean)}")
    return (
        f'<svg viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{label}">'
        '<rect width="100" height="16" style="fill:var(--line);opacity:.4"/>'
        f'<rect width="{100 * number.mean:.2f}" height="9" style="fill:var(--good)"/>'
        f'<rect y="11" width="{100 * second:.2f}" height="5" style="fill:var({colour})"/>'
        f'<rect x="{100 * number.low:.2f}" y="4" width="{max(0.2, 100 * (number.high - number.low)):.2f}" height="1.2" '
        'style="fill:var(--ink)"/></svg>'
    )


def _examples(row: ReportRow) -> str:
    heads = "".join(f"<th>{name}</th>" for name in ("", "edit", "asked", "expected", "before", "after"))
    lines = "".join(map(_example, row.examples))
    return (
        f"<details><summary>{len(row.examples)} examples</summary>"
        f'<div class="scroll"><table><tr>{heads}</tr>{lines}</table></div></details>'
    )


def _example(example: Example) -> str:
    mark = '<td class="good">✓</td>' if example.good else '<td class="bad">✗</td>'
    texts = (example.edit, example.prompt, example.expected, example.before, example.after)
    return f"<tr>{mark}{''.join(f'<td>{escape(text) or _nothing()}</td>' for text in texts)}</tr>"


def _nothing() -> str:
    return '<span class="soft">(nothing)</span>'


def _abilities(card: ReportCard) -> str:
    if not card.abilities:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in ("task", "metric", "n", "before", "after", "standard error"))
    lines = []
    for each in card.abilities:
        error = "–" if each.error is None else f"{each.error:.4f}"
        cells = (each.task, each.metric, str(each.n), f"{each.before:.4g}", f"{each.after:.4g}", error)
        lines.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return (
        '<h2>General ability</h2><p class="soft">Tasks of lm-evaluation-harness on the base model, and with the first '
        f'edit.</p><div class="scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _damage(damage: Mapping[str, Damage]) -> str:
    lines = "".join(_line(name, each) for name, each in damage.items())
    return lines and f"<h2>Running text</h2>{lines}"


def _line(name: str, damage: Damage) -> str:
    return (
        f"<p>{escape(name)}: perplexity {damage.perplexity_before:.2f} before, {damage.perplexity:.2f} after "
        f"(worst of {damage.edits}: {damage.worst:.2f}); KL {damage.kl:.4f} nats a token; {damage.tokens} tokens "
        f'<span class="soft">(SHA-256 {escape(damage.text_hash[:12])}…)</span>.</p>'
    )


def _together(card: ReportCard) -> str:
    if not card.together:
        return ""
    names = list(dict.fromkeys(name for part in card.together for name in part.rows))
    headlines = {row.row: row.headline for row in card.rows}
    files = list(dict.fromkeys(file for part in card.together for file in part.damage))
    titles = [*(kind_of(name).title for name in names), *(f"perplexity of {file}" for file in files)]
    heads = "".join(f"<th>{escape(title)}</th>" for title in titles)
    lines = []
    for part in card.together:
        cells = [_percent(part.rows[name].values[headlines[name]]) if name in part.rows else "–" for name in names]
        hurt = [f"{part.damage[file].perplexity:.4g}" if file in part.damage else "–" for file in files]
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in (str(part.edits), *cells, *hurt))}</tr>")
    return (
        "<h2>Many edits together</h2>"
        '<p class="soft">Exact answers where the edit must hold, kept answers elsewhere.</p>'
        f'<div class="scroll"><table><tr><th>edits</th>{heads}</tr>{"".join(lines)}</table></div>'
    )


def _protocol(card: ReportCard) -> str:
    facts = {**card.protocol, "base weights": card.base_weights, "data": card.data}
    facts["versions"] = ", ".join(f"{package} {number}" for package, number in card.versions.items())
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f"<h2>How it was measured</h2><dl>{items}</dl>"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _warning(said: float) -> str:
    """The class of a share of answers that say the target where they should not."""
    return "warn" if said > 0 else "soft"

"""Style and script of the page."""

from __future__ import annotations

from collections.abc import Mapping

from jaxinfer.tune.report._figure import DARK, LIGHT


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


STYLE = (
    f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
@media print {{ :root {{ {_variables(LIGHT)} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.15rem; font-weight: 600; color: var(--muted); margin: 0 0 10px;
  overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 44px 0 6px; }
h3 { font-size: .8rem; font-weight: 500; color: var(--muted); margin: 0; overflow-wrap: anywhere; }
.about { color: var(--muted); margin: 0 0 12px; max-width: 85ch; overflow-wrap: anywhere; }
.verdict { font-size: 1.45rem; line-height: 1.35; font-weight: 600; margin: 0 0 12px;
  padding: 14px 18px; border-left: 6px solid var(--chosen); overflow-wrap: anywhere;
  background: color-mix(in srgb, var(--chosen) 9%, var(--paper)); }
.verdict.kept { border-color: var(--base);
  background: color-mix(in srgb, var(--base) 10%, var(--paper)); }
.verdict.none { border-color: var(--bad); background: var(--wash); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.card b { font-size: 1.5rem; font-weight: 650; }
.card small { font-size: .9rem; font-weight: 500; color: var(--muted); }
.card p { margin: 0 0 8px; font-size: .82rem; color: var(--muted); }
.better { color: var(--chosen); font-weight: 600; }
.worse { color: var(--bad); font-weight: 600; }
.bar { height: 7px; margin: 3px 0; background: var(--line); border-radius: 4px; overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--front); }
.bar.base i { background: var(--base); }
.bar.chosen i, .bar.limit i { background: var(--chosen); }
td .bar { min-width: 110px; }
figure { margin: 8px 0 14px; }
figure svg { width: 100%; height: auto; max-width: 1080px; display: block; }
.legend { list-style: none; padding: 0; margin: 0 0 12px; columns: 2 380px; font-size: .88rem; }
.legend b { display: inline-block; min-width: 2em; }
.legend li { break-inside: avoid; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px 5px 0; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 250px; max-width: 460px; }
table.sorts th { cursor: pointer; }
th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; }
tr.chosen td { font-weight: 650; color: var(--chosen);
  background: color-mix(in srgb, var(--chosen) 8%, var(--paper)); }
tr.base td { color: var(--base); }
td .reason { font-size: .8rem; color: var(--muted); }
details { font-size: .8rem; font-weight: 400; color: var(--muted); }
details ul { margin: 0; padding-left: 1.2em; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 20px; font-size: .88rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { border: 1px solid var(--line); border-radius: 8px; padding: 12px; font-size: .82rem;
  overflow: auto; max-height: 420px; }
button { font: inherit; padding: 3px 14px; border: 1px solid var(--line); border-radius: 6px;
  background: var(--paper); color: var(--ink); cursor: pointer; }
@media print { main { max-width: none; padding: 0; } button { display: none; }
  .scroll { overflow: visible; } table { font-size: 6.5pt; } th, td { padding-right: 5px; }
  td.long { min-width: 0; } pre { max-height: none; white-space: pre-wrap; }
  figure, .card, tr { break-inside: avoid; } h2 { break-after: avoid; }
  * { print-color-adjust: exact; } }
"""
)

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table")) {
  table.classList.add("sorts");
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.key === undefined ? cell.textContent : Number(cell.dataset.key);
    };
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const found = typeof x === "number" ? x - y : x.localeCompare(y);
      return up ? found : -found;
    };
    const body = table.tBodies[0];
    for (const row of [...body.rows].sort(order)) body.append(row);
  }));
}
const copy = document.getElementById("copy");
if (copy) copy.addEventListener("click", () => {
  const text = document.getElementById("recipe");
  const all = document.createRange();
  all.selectNodeContents(text);
  getSelection().removeAllRanges();
  getSelection().addRange(all);
  document.execCommand("copy");
  copy.textContent = "Copied";
});
"""

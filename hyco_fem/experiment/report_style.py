"""How a page looks: light and dark, on a desk, on a phone and on paper."""

from __future__ import annotations

# The colours of curves are those of Okabe and Ito, which people who do not see red or green tell apart.
STYLE = """
:root { --paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dae0; --wash: #f5f7f9; --link: #0057a3;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #a8508a; --c4: #b57b00; --c5: #2f94cc;
  --c6: #1b1f24; --c7: #6b6b6b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e4e7ea; --soft: #a2abb4; --rule: #3a4148; --wash: #1e2327; --link: #7cc0f5;
    --c0: #56b4e9; --c1: #f08a3c; --c2: #2cc79b; --c3: #d894bd; --c4: #e6b93f; --c5: #8fd0f5;
    --c6: #e4e7ea; --c7: #a0a0a0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 74rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); }
.lead { font-size: 1.05rem; }
.note, figcaption, caption, footer { color: var(--soft); font-size: .875rem; }
.badge { display: inline-block; vertical-align: .2em; padding: .1em .6em; border: 1px solid currentColor;
  border-radius: 1em; font-size: .8rem; font-weight: 600; color: var(--soft); white-space: nowrap; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.2rem; list-style: none; margin: 1rem 0 0; padding: 0; }
code, pre { font: .85rem/1.5 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.wide { overflow-x: auto; }
.wide { margin: .8rem 0; }
.wide:focus-visible, a:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .925rem; }
caption { text-align: left; padding-bottom: .3rem; white-space: nowrap; }
th, td { padding: .28rem 1.4rem .28rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }
th:last-child, td:last-child { padding-right: 0; }
td.long { min-width: 11rem; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
thead th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
tbody th, tfoot th { white-space: nowrap; }
tbody th { font-weight: 400; }
tfoot th, tfoot td { font-weight: 600; }
.num { font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); gap: 1.2rem 1.6rem;
  margin: 1rem 0; align-items: start; }
.beside { display: flex; flex-wrap: wrap; gap: 0 2.5rem; }
.beside > .wide { max-width: 100%; margin-top: 0; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figure > svg, figure > img { display: block; width: 100%; max-width: 34rem; height: auto; }
figure > img.whole { max-width: 60rem; margin-top: 1rem; }
ul.note { padding-left: 1.1rem; }
figcaption { margin-top: .3rem; max-width: 34rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; list-style: none; margin: .1rem 0 0; padding: 0;
  font-size: .875rem; }
.legend svg { width: 2rem; height: .7rem; margin-right: .35rem; vertical-align: baseline; }
svg text { fill: var(--ink); font: 12px system-ui, "Segoe UI", Arial, sans-serif; }
svg .frame { fill: none; stroke: var(--soft); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg .thin { stroke-width: 1; opacity: .55; }
svg .level { fill: none; stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
svg .sensor { stroke: #fff; stroke-width: 1.2; }
svg .bar { fill: none; stroke: var(--ink); stroke-width: 1; }
pre { background: var(--wash); padding: .8rem 1rem; border-radius: .3rem; margin: .8rem 0;
  white-space: pre-wrap; }
pre code { display: block; columns: 24rem; column-gap: 2.5rem; }
pre .block { display: block; break-inside: avoid; }
pre .default { color: var(--soft); }
pre b { font-weight: 600; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--rule); }
@media print {
  :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --wash: #fff; --link: #000;
    --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #a8508a; --c4: #b57b00; --c5: #2f94cc;
    --c6: #000; --c7: #6b6b6b; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  pre { border: 1px solid var(--rule); }
  .figures { grid-template-columns: 1fr 1fr 1fr; gap: .8rem; }
  pre code { columns: 15rem; }
  tr, figure, .beside > .wide { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

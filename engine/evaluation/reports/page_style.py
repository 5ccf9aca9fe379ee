"""Style and script of a report's page. The script only chooses the language."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --dim: #68707c; --back: #fff; --card: #f6f7f9; --grid: #dfe3e8;
  --v0: #1f6fc4; --v1: #d9770a; --v2: #218a3c; --v3: #8446b5; --v4: #b3304f; --v5: #0f8b8d;
  --good: #218a3c; --bad: #cc2b2b }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7ec; --dim: #98a1ad; --back: #14171c; --card: #1c2027;
  --grid: #303640; --v0: #5aa9f5; --v1: #f2a541; --v2: #57c776; --v3: #c08bea; --v4: #f0809c; --v5: #4fd0d2;
  --good: #57c776; --bad: #ff6b6b } }
body { font: 15px/1.45 system-ui, "Noto Sans CJK SC", sans-serif; color: var(--text); background: var(--back);
  margin: 1.5rem auto; max-width: 1100px; padding: 0 1rem }
html[data-language=en] [lang=zh], html[data-language=zh] [lang=en] { display: none }
header { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 1.8rem 0 .6rem }
button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--grid); border-radius: 6px;
  padding: .2rem .7rem; cursor: pointer }
figure { margin: 0; padding: .7rem; background: var(--card); border-radius: 8px; overflow-x: auto }
figcaption { font-size: .85rem; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin-bottom: .3rem }
figcaption > span::before, i { content: ""; display: inline-block; width: .65em; height: .65em; border-radius: 50%;
  margin-right: .45em; background: currentColor }
figcaption > span.published::before { border-radius: 0; background: none; border: 1.5px solid var(--text); width: .5em;
  height: .5em; transform: rotate(45deg) }
.version0 { color: var(--v0) } .version1 { color: var(--v1) } .version2 { color: var(--v2) } .version3 { color: var(--v3) }
.version4 { color: var(--v4) } .version5 { color: var(--v5) }
figcaption .published { color: var(--text) }
svg { display: block; width: 100%; min-width: 640px; height: auto }
svg text { font: 12px system-ui, "Noto Sans CJK SC", sans-serif; fill: var(--text) }
svg text.tick { text-anchor: middle; fill: var(--dim); font-size: 11px } svg text.name { text-anchor: end }
.grid, .row { stroke: var(--grid) } .row { stroke-dasharray: 1 3 } .zero { stroke: var(--dim) }
.chance { stroke: var(--dim); stroke-width: 1.4; stroke-dasharray: 3 2 }
svg circle { fill: currentColor } path.median { stroke: currentColor; stroke-width: 2.4 }
.whisker { fill: none; stroke: currentColor; stroke-width: 1.6 }
path.published { fill: none; stroke: var(--text); stroke-width: 1.3 }
.better { color: var(--good) } .worse { color: var(--bad) } .different { color: var(--v3) } .none { color: var(--dim) }
.note, small { color: var(--dim); font-size: .85rem } .note { margin: .5rem 0 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; width: 100% }
th { color: var(--dim); font-weight: 500; font-size: .82rem } td, th { padding: .25rem .8rem .25rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid var(--grid) }
td small { white-space: nowrap } td[rowspan] { min-width: 13em } td[rowspan] small { white-space: normal }
summary { cursor: pointer; padding: .25rem 0 } details p { margin: .3rem 0; color: var(--dim); font-size: .85rem }
@media print { button { display: none } }
"""

SCRIPT = """
const root = document.documentElement;
function choose(language) { root.dataset.language = root.lang = language; }
choose(navigator.language.startsWith("zh") ? "zh" : "en");
document.getElementById("language").onclick = () => choose(root.dataset.language === "en" ? "zh" : "en");
"""

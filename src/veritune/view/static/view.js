// Keys, and curves that follow a run. Every page works without this file.
"use strict";

const typing = (e) => e.target.closest("input, select, textarea") || e.ctrlKey || e.metaKey || e.altKey;

let shown = -1;

function step(by) {
  const items = [...document.querySelectorAll("article.item[id^=i]")];
  if (!items.length) return;
  const next = shown + by;
  if (next >= items.length) { document.querySelector("a[rel=next]")?.click(); return; }
  if (next < 0) { document.querySelector("a[rel=prev]")?.click(); return; }
  shown = next;
  items[shown].focus({ preventScroll: true });
  items[shown].scrollIntoView({ block: "start" });
}

function only(which) {
  for (const answer of document.querySelectorAll(".answer[data-letter]")) {
    answer.hidden = which !== "3" && answer.dataset.letter !== (which === "1" ? "A" : "B");
  }
}

document.addEventListener("keydown", (e) => {
  if (typing(e)) return;
  const button = document.querySelector(`.decide button[data-key="${CSS.escape(e.key)}"]`);
  if (button) { e.preventDefault(); button.click(); return; }
  if (e.key === "j") step(1);
  else if (e.key === "k") step(-1);
  else if ("123".includes(e.key)) only(e.key);
  else if (e.key === "n") document.querySelector("a[rel=next]")?.click();
  else if (e.key === "p") document.querySelector("a[rel=prev]")?.click();
});

document.addEventListener("htmx:after:swap", () => { shown = -1; });

// On a narrow screen the filters would hide the samples: they begin folded.
function fold() {
  if (matchMedia("(max-width: 700px)").matches) document.querySelector("details.folded")?.removeAttribute("open");
}
fold();
document.addEventListener("htmx:after:swap", fold);

const COLOURS = ["--s1", "--s2", "--s3", "--s4", "--s5", "--s6"];

class LiveChart extends HTMLElement {
  connectedCallback() {
    this.runs = this.dataset.runs.split(" ").filter(Boolean);
    this.from = Object.fromEntries(this.runs.map((r) => [r, 0]));
    this.points = Object.fromEntries(this.runs.map((r) => [r, new Map()]));
    this.asking = false;
    this.look();
    if (this.dataset.live) this.timer = setInterval(() => { if (!document.hidden) this.look(); }, 2000);
  }

  disconnectedCallback() { clearInterval(this.timer); this.plot?.destroy(); }

  async look() {
    if (this.asking || typeof uPlot === "undefined") return;
    this.asking = true;
    try {
      let fresh = false;
      for (const run of this.runs) {
        for (;;) {
          const answer = await fetch(`${this.dataset.address}?run=${encodeURIComponent(run)}&from=${this.from[run]}`);
          if (!answer.ok) return;
          const found = await answer.json();
          if (found.next < this.from[run]) this.points[run].clear();
          for (const [x, y] of found.points[this.dataset.curve] ?? []) { this.points[run].set(x, y); fresh = true; }
          const done = found.next === this.from[run];
          this.from[run] = found.next;
          if (done) break;
        }
      }
      if (fresh) this.draw();
    } catch { /* the server has gone; the curve stays as it was */ } finally { this.asking = false; }
  }

  draw() {
    const x = [...new Set(this.runs.flatMap((r) => [...this.points[r].keys()]))].sort((a, b) => a - b);
    const data = [x, ...this.runs.map((r) => x.map((s) => this.points[r].get(s) ?? null))];
    if (this.plot) { this.plot.setData(data); return; }
    const look = getComputedStyle(this);
    const ink = look.getPropertyValue("--muted"), line = look.getPropertyValue("--line");
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const series = this.runs.map((label, i) => ({
      label, stroke: look.getPropertyValue(COLOURS[i % COLOURS.length]), width: 1.5, spanGaps: true,
      dash: i >= COLOURS.length ? [6, 4] : undefined, points: { show: x.length < 60 },
    }));
    this.replaceChildren();
    this.plot = new uPlot({
      width: Math.max(280, this.clientWidth), height: 240, scales: { x: { time: false } },
      axes: [{ ...axis, label: "step", labelSize: 20, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5] }, axis], series: [{ label: "step" }, ...series],
    }, data, this);
  }
}

customElements.define("live-chart", LiveChart);

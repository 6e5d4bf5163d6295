"use strict";
// Charts: every figure holds a Vega-Lite specification as JSON; vega-embed draws it without evaluating text as code.
window.agentrl = {};
(() => {
  const drawn = new WeakMap(); // figure -> { view, shape }
  const dataOf = (figure) => figure.querySelector("script[type='application/json']");
  const shapeOf = (spec) => JSON.stringify({ ...spec, datasets: Object.keys(spec.datasets) });

  // Shows a part of the x axis around its middle, `factor` times as much as now; 0 shows everything.
  function zoom(view, factor) {
    const [from, to] = view.scale("x").domain();
    const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
    view.signal("zoom_x", factor ? [middle - half, middle + half] : null).runAsync();
  }

  async function draw(figure) {
    const data = dataOf(figure);
    if (!data || drawn.has(figure)) return;
    const spec = JSON.parse(data.textContent);
    const known = { shape: shapeOf(spec), view: null };
    drawn.set(figure, known);
    const options = { ast: true, actions: false, renderer: "svg" };
    known.view = (await vegaEmbed(figure.querySelector(".plot"), spec, options)).view;
    figure.querySelectorAll("[data-zoom]").forEach((button) => {
      button.addEventListener("click", () => zoom(known.view, Number(button.dataset.zoom)));
    });
  }

  // One after the other; the page can be used in between.
  agentrl.drawAll = async (root) => {
    for (const figure of root.querySelectorAll("figure.chart")) await draw(figure);
    document.body.dataset.drawn = "yes";
  };

  // New sections in the place of old ones; a chart that only got more data stays, with what its reader has zoomed to.
  agentrl.replace = (part, html) => {
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    const old = new Map([...part.querySelectorAll("figure.chart")].map((figure) => [figure.dataset.chart, figure]));
    for (const figure of fresh.content.querySelectorAll("figure.chart")) {
      const [before, data] = [old.get(figure.dataset.chart), dataOf(figure)];
      const known = before && drawn.get(before);
      const spec = data && JSON.parse(data.textContent);
      if (!spec || !known || !known.view || known.shape !== shapeOf(spec)) continue;
      for (const [name, rows] of Object.entries(spec.datasets)) known.view.data(name, rows);
      known.view.runAsync();
      figure.replaceWith(before);
    }
    part.replaceChildren(fresh.content);
    agentrl.drawAll(part);
  };
})();

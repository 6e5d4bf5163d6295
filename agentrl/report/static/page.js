"use strict";
(() => {
  function startTabs(bar) {
    bar.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
      bar.querySelectorAll("button").forEach((other) => other.setAttribute("aria-selected", String(other === button)));
      document.querySelectorAll(".panel").forEach((panel) => { panel.hidden = panel.id !== button.dataset.tab; });
    }));
  }

  // A live page asks its own server for the sections that changed, and for what was stored since.
  function follow(every) {
    let seen = "";
    const ask = () => {
      let wait = every;
      fetch("update?seen=" + encodeURIComponent(seen)).then((r) => (r.status === 200 ? r.json() : null)).then((update) => {
        document.body.dataset.state = "following";
        if (!update) return;
        seen = update.version;
        if (update.more) wait = 0;
        for (const [name, html] of Object.entries(update.parts)) {
          const part = document.querySelector(`[data-part="${name}"]`);
          if (part) agentrl.replace(part, html);
        }
        if (update.entries.length) document.querySelector(".browser").browser.update(update.entries);
      }).catch(() => { document.body.dataset.state = "lost"; }).finally(() => setTimeout(ask, wait));
    };
    ask();
  }

  document.querySelectorAll(".tabs").forEach(startTabs);
  agentrl.drawAll(document);
  if (document.body.dataset.live) follow(Number(document.body.dataset.live));
})();

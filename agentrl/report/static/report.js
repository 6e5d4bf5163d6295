"use strict";
// Everything that comes from a run enters the page through textContent; nothing is parsed as HTML except the sections
// that the live page's own server has rendered and escaped.
(() => {
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const shade = (logprob) => "s" + [0.05, 0.2, 0.7, 1.6, 3].filter((limit) => -logprob > limit).length;
  const number = (value) => String(Math.round(value * 1000) / 1000);

  function tokens(row, from, to, show) {
    const parent = document.createDocumentFragment();
    for (let i = from; i < to; i++) {
      const isTrained = row.trained[i] === "1";
      const piece = row.pieces[i];
      const isSpecial = /^<\|.*\|>$/.test(piece.trim());
      const token = make("span", "token" + (isTrained ? " " + shade(row.logprobs[i]) : "") + (isSpecial ? " special" : ""), piece);
      const info = isTrained
        ? `trained token, log-prob ${row.logprobs[i].toFixed(3)}, probability ${Math.exp(row.logprobs[i]).toFixed(3)}`
        : "context, not trained on";
      token.title = info;
      token.addEventListener("click", () => show(token, JSON.stringify(piece) + ": " + info));
      parent.append(token);
    }
    return parent;
  }

  function bubble(kind, text) {
    return make("div", "says " + kind, text);
  }

  function conversation(episode, show) {
    const parent = document.createDocumentFragment();
    parent.append(bubble("env", episode.first));
    episode.turns.forEach((turn, i) => {
      const row = episode.rows[turn.row];
      const said = bubble("model");
      if (row) said.append(tokens(row, turn.start, turn.end, show));
      else said.textContent = turn.action;
      const note = make("div", "note");
      note.append(make("span", "", "turn " + (i + 1)));
      if (row) {
        const values = row.logprobs.slice(turn.start, turn.end);
        const total = values.reduce((sum, value) => sum + value, 0);
        note.append(make("span", "", `${turn.end - turn.start} trained tokens, log-prob ${number(total)}`));
      }
      if (turn.reward) note.append(make("span", "badge " + (turn.reward > 0 ? "good" : "bad"), "reward " + number(turn.reward)));
      if (!turn.is_valid) note.append(make("span", "badge bad", "invalid action"));
      if (turn.finish === "length") note.append(make("span", "badge bad", "cut at the token limit"));
      said.append(note);
      parent.append(said);
      if (turn.observation) parent.append(bubble("env", turn.observation));
    });
    return parent;
  }

  function exact(episode, show) {
    const parent = document.createDocumentFragment();
    for (const row of episode.rows) {
      const block = bubble("env exact");
      block.append(tokens(row, 0, row.pieces.length, show));
      parent.append(block);
    }
    return parent;
  }

  function showEpisode(parent, episode, state) {
    parent.replaceChildren();
    parent.append(make("h3", "", episode.name));
    const meta = make("div", "meta");
    meta.append(make("span", "badge " + (episode.success ? "good" : "bad"), episode.success ? "success" : "no success"));
    meta.append(make("span", "badge", "reward " + number(episode.reward)));
    meta.append(make("span", "badge", `${episode.turns.length} turns, ended: ${episode.status.replace("_", " ")}`));
    meta.append(make("span", "badge", `after ${episode.policy} updates, try ${episode.member + 1}`));
    if (episode.error) meta.append(make("span", "badge bad", episode.error));
    const toggle = make("button", "", state.exact ? "Conversation" : "Exact tokens");
    toggle.addEventListener("click", () => { state.exact = !state.exact; showEpisode(parent, episode, state); });
    meta.append(toggle);
    const shades = make("div", "shades");
    shades.append("trained tokens by log-prob: ");
    ["0", "-0.05", "-0.2", "-0.7", "-1.6", "-3"].forEach((text, i) => {
      const key = make("span");
      const swatch = make("i", "token s" + i);
      key.append(swatch, text);
      shades.append(key);
    });
    const output = make("output");
    shades.append(output);
    const show = (token, text) => {
      parent.querySelectorAll(".token.on").forEach((other) => other.classList.remove("on"));
      token.classList.add("on");
      output.textContent = text;
    };
    parent.append(meta, shades, state.exact ? exact(episode, show) : conversation(episode, show));
  }

  function startBrowser(root) {
    const data = root.querySelector("script[type='application/json']");
    const list = root.querySelector(".list");
    const article = root.querySelector(".episode");
    const state = { exact: false, chosen: null };
    let episodes = JSON.parse(data.textContent);
    const value = {
      source: (e) => e.source.replace("step-", "training batch ").replace("eval-", "evaluation after ").replace(/\b0+(?=\d)/g, ""),
      category: (e) => e.category || "no category",
      outcome: (e) => (e.success ? "success" : "no success"),
    };
    const filters = [...root.querySelectorAll("select")];
    const fill = () => filters.forEach((select) => {
      const kept = select.value;
      const all = { source: "all batches and evaluations", category: "all categories", outcome: "all outcomes" };
      const found = [...new Set(episodes.map(value[select.dataset.filter]))];
      select.replaceChildren(new Option(all[select.dataset.filter], ""), ...found.map((text) => new Option(text, text)));
      if (found.includes(kept)) select.value = kept;
    });
    const render = () => {
      const matching = episodes.filter((e) => filters.every((s) => !s.value || value[s.dataset.filter](e) === s.value));
      list.replaceChildren(...matching.map((episode) => {
        const item = make("li");
        const button = make("button");
        button.append(make("span", episode.success ? "win" : "loss"), make("span", "", episode.category || episode.name),
          make("small", "", episode.turns.length + (episode.turns.length === 1 ? " turn" : " turns")));
        button.title = value.source(episode) + ": " + episode.name;
        button.addEventListener("click", () => choose(episode));
        button.episode = episode;
        item.append(button);
        return item;
      }));
      if (!matching.includes(state.chosen)) choose(matching.find((e) => e.success) || matching[0]);
      else choose(state.chosen);
    };
    const choose = (episode) => {
      state.chosen = episode;
      list.querySelectorAll("button").forEach((b) => b.setAttribute("aria-current", String(b.episode === episode)));
      if (episode) showEpisode(article, episode, state);
      else article.replaceChildren(make("p", "none", episodes.length ? "no episode matches" : "no episodes stored (tracking.trajectories_every)"));
    };
    filters.forEach((select) => select.addEventListener("change", render));
    root.update = (fresh) => { episodes = fresh; fill(); render(); };
    fill();
    const last = episodes.length ? value.source(episodes[episodes.length - 1]) : "";
    filters[0].value = last;
    render();
  }

  function startTabs(bar) {
    bar.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => {
      bar.querySelectorAll("button").forEach((other) => other.setAttribute("aria-selected", String(other === button)));
      document.querySelectorAll(".panel").forEach((panel) => { panel.hidden = panel.id !== button.dataset.tab; });
    }));
  }

  // A live page asks its own server for the sections that changed.
  function follow(every) {
    let seen = "";
    const again = () => setTimeout(ask, every);
    const ask = () => fetch("update?seen=" + encodeURIComponent(seen)).then((r) => (r.status === 200 ? r.json() : null)).then((update) => {
      document.body.dataset.state = "following";
      if (update) {
        seen = update.version;
        for (const [name, html] of Object.entries(update.parts)) {
          const part = document.querySelector(`[data-part="${name}"]`);
          if (part) part.innerHTML = html;
        }
        const browser = document.querySelector(".browser");
        if (browser && update.episodes.length) browser.update(update.episodes);
      }
    }).catch(() => { document.body.dataset.state = "lost"; }).finally(again);
    ask();
  }

  document.querySelectorAll(".browser").forEach(startBrowser);
  document.querySelectorAll(".tabs").forEach(startTabs);
  if (document.body.dataset.live) follow(Number(document.body.dataset.live));
})();

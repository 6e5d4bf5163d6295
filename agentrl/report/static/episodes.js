"use strict";
// The browser of episodes. Everything that comes from a run enters the page through textContent; nothing is HTML.
(() => {
  const SHOWN = 200; // entries that the list grows by
  const KEPT = 12; // pieces that stay unpacked
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const number = (value) => String(Math.round(value * 1000) / 1000);
  const shade = (logprob) => "s" + [0.05, 0.2, 0.7, 1.6, 3].filter((limit) => -logprob > limit).length;
  const words = (source) => source.replace("step-", "training batch ").replace("eval-", "evaluation after ").replace(/\b0+(?=\d)/g, "");

  // Pieces: JSON, gzip, base64; in the page, or in a script beside it that calls `agentrl.piece`.
  const unpack = async (text) => {
    const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };
  const arrived = new Map();
  agentrl.piece = (key, text) => arrived.set(key, text);
  const fetchScript = (key) => new Promise((resolve, reject) => {
    const script = make("script");
    const [run, name] = key.split("/");
    script.src = `${document.body.dataset.beside}/${run}/${encodeURIComponent(name)}.js`;
    script.onload = () => { resolve(arrived.get(key)); arrived.delete(key); script.remove(); };
    script.onerror = () => { script.remove(); reject(new Error(`${decodeURIComponent(script.src)} cannot be read: it belongs beside this page.`)); };
    document.head.append(script);
  });
  const pieces = new Map();
  const loadPiece = (key) => {
    const inside = document.querySelector(`script[data-piece="${CSS.escape(key)}"]`);
    const piece = pieces.get(key) || (inside ? Promise.resolve(inside.textContent) : fetchScript(key)).then(unpack);
    pieces.delete(key);
    pieces.set(key, piece); // the newest at the end
    piece.catch(() => pieces.delete(key));
    if (pieces.size > KEPT) pieces.delete(pieces.keys().next().value);
    return piece;
  };

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

  function conversation(episode, show) {
    const parent = document.createDocumentFragment();
    parent.append(make("div", "says env", episode.first));
    episode.turns.forEach((turn, i) => {
      const row = episode.rows[turn.row];
      const said = make("div", "says model");
      if (row) said.append(tokens(row, turn.start, turn.end, show));
      else said.textContent = turn.action;
      const note = make("div", "note");
      note.append(make("span", "", "turn " + (i + 1)));
      if (row) {
        const total = row.logprobs.slice(turn.start, turn.end).reduce((sum, value) => sum + value, 0);
        note.append(make("span", "", `${turn.end - turn.start} trained tokens, log-prob ${number(total)}`));
      }
      if (turn.reward) note.append(make("span", "badge " + (turn.reward > 0 ? "good" : "bad"), "reward " + number(turn.reward)));
      if (!turn.is_valid) note.append(make("span", "badge bad", "invalid action"));
      if (turn.finish === "length") note.append(make("span", "badge bad", "cut at the token limit"));
      said.append(note);
      parent.append(said);
      if (turn.observation) parent.append(make("div", "says env", turn.observation));
    });
    return parent;
  }

  function exact(episode, show) {
    const parent = document.createDocumentFragment();
    for (const row of episode.rows) {
      const block = make("div", "says env exact");
      block.append(tokens(row, 0, row.pieces.length, show));
      parent.append(block);
    }
    return parent;
  }

  const isText = (episode, wanted) =>
    [episode.first, ...episode.turns.flatMap((turn) => [turn.action, turn.observation])].some((text) => (text || "").toLowerCase().includes(wanted));

  class Browser {
    constructor(root) {
      this.root = root;
      this.list = root.querySelector(".list");
      this.article = root.querySelector(".episode");
      this.status = root.querySelector(".found");
      this.fields = Object.fromEntries([...root.querySelectorAll("[data-filter]")].map((field) => [field.dataset.filter, field]));
      this.entries = [];
      this.matching = [];
      this.view = "conversation";
      this.search = 0;
      this.follows = true; // shows the newest batch until its reader chooses another
      let waiting;
      Object.values(this.fields).forEach((field) => field.addEventListener("input", () => {
        this.follows = false;
        clearTimeout(waiting);
        waiting = setTimeout(() => this.filter(), field.tagName === "SELECT" ? 0 : 250);
      }));
      this.list.addEventListener("scroll", () => {
        if (this.list.scrollTop + this.list.clientHeight > this.list.scrollHeight - 400) this.grow();
      });
      unpack(root.querySelector("script[data-index]").textContent).then((entries) => this.update(entries));
    }

    load(entry) { return loadPiece(`${this.root.dataset.run}/${entry.piece}`).then((piece) => piece[entry.place]); }

    // Entries of some sources, in the place of older ones of the same sources.
    update(entries) {
      const sources = new Set(entries.map((entry) => entry.source));
      this.entries = [...this.entries.filter((entry) => !sources.has(entry.source)), ...entries];
      const values = { source: (e) => words(e.source), category: (e) => e.category || "no category", status: (e) => e.status.replaceAll("_", " "), success: (e) => (e.success ? "success" : "no success") };
      this.values = values;
      for (const [name, value] of Object.entries(values)) {
        const select = this.fields[name];
        const kept = select.value;
        const found = [...new Set(this.entries.map(value))];
        select.replaceChildren(select.options[0], ...found.map((text) => new Option(text, text)));
        if (found.includes(kept)) select.value = kept;
        select.hidden = found.length < 2;
      }
      if (this.follows && this.entries.length) this.fields.source.value = values.source(this.entries[this.entries.length - 1]);
      this.filter();
    }

    async filter() {
      const mine = ++this.search;
      const wanted = this.fields.text.value.trim().toLowerCase();
      const [low, high] = ["low", "high"].map((name) => (this.fields[name].value === "" ? NaN : Number(this.fields[name].value)));
      const possible = this.entries.filter((e) => Object.entries(this.values).every(([name, value]) => !this.fields[name].value || value(e) === this.fields[name].value) && !(e.reward < low) && !(e.reward > high));
      const begin = (matching) => { this.matching = matching; this.list.replaceChildren(); this.grow(); };
      if (!wanted) {
        begin(possible);
        this.tell(possible.length);
      } else {
        begin([]);
        for (let i = 0; i < possible.length; i++) {
          const entry = possible[i];
          let hit = entry.title.toLowerCase().includes(wanted);
          try { hit = hit || isText(await this.load(entry), wanted); } catch (error) { this.status.textContent = error.message; return; }
          if (mine !== this.search) return;
          if (hit) { this.matching.push(entry); if (this.matching.length <= SHOWN) this.grow(); }
          if (i % 50 === 0) this.tell(this.matching.length, i + 1 < possible.length ? `, looked at ${i + 1} of ${possible.length}` : "");
          if (i === 0 || (hit && this.matching.length === 1)) this.choose(this.matching[0]);
        }
        this.tell(this.matching.length);
        this.root.dataset.searched = wanted;
      }
      if (!this.matching.includes(this.chosen)) this.choose(this.matching.find((e) => e.success) || this.matching[0]);
      else this.mark();
    }

    tell(found, more = "") { this.status.textContent = `${found.toLocaleString("en")} of ${this.entries.length.toLocaleString("en")} stored episodes${more}`; }

    grow() {
      const start = this.list.children.length;
      for (const entry of this.matching.slice(start, start + SHOWN)) {
        const item = make("li");
        const button = make("button");
        button.append(make("span", entry.success ? "win" : "loss"), make("span", "", entry.title), make("small", "", number(entry.reward)));
        button.title = `${words(entry.source)}: ${entry.title}, reward ${number(entry.reward)}`;
        button.addEventListener("click", () => this.choose(entry));
        button.entry = entry;
        item.append(button);
        this.list.append(item);
      }
      this.mark();
    }

    mark() { this.list.querySelectorAll("button").forEach((b) => b.setAttribute("aria-current", String(b.entry === this.chosen))); }

    async choose(entry) {
      this.chosen = entry;
      this.mark();
      if (!entry) {
        this.article.replaceChildren(make("p", "none", this.entries.length ? "no episode matches" : "no episodes stored (tracking.trajectories_every)"));
        return;
      }
      const siblings = this.entries.filter((e) => e.source === entry.source && e.group === entry.group).sort((a, b) => a.member - b.member);
      try {
        const episodes = await Promise.all((this.view === "siblings" ? siblings : [entry]).map((e) => this.load(e)));
        if (entry === this.chosen) this.show(entry, siblings, episodes);
      } catch (error) {
        this.article.replaceChildren(make("p", "none", error.message));
      }
    }

    show(entry, siblings, episodes) {
      this.article.replaceChildren(make("h3", "", entry.title));
      const meta = make("div", "meta");
      const told = [entry.category, words(entry.source), entry.policy === undefined || entry.policy === null ? "" : `after ${entry.policy} updates`];
      meta.append(...told.filter(Boolean).map((text) => make("span", "badge", text)));
      const views = [["conversation", "Conversation"], ["exact", "Exact tokens"], ["siblings", "Side by side"]];
      const hasTokens = episodes[0].rows.length > 0;
      const useful = views.filter(([name]) => (name === "siblings" ? siblings.length > 1 : name !== "exact" || hasTokens));
      const bar = make("div", "views");
      useful.forEach(([name, text]) => {
        const button = make("button", "", text);
        button.dataset.view = name;
        button.setAttribute("aria-pressed", String(this.view === name));
        button.addEventListener("click", () => { this.view = name; this.choose(entry); });
        bar.append(button);
      });
      meta.append(bar);
      const output = make("output");
      const show = (token, text) => {
        this.article.querySelectorAll(".token.on").forEach((other) => other.classList.remove("on"));
        token.classList.add("on");
        output.textContent = text;
      };
      this.article.append(meta, ...(siblings.length > 1 ? [this.strip(entry, siblings)] : []), ...(hasTokens ? [shades(output)] : []));
      const draw = this.view === "exact" && hasTokens ? exact : conversation;
      if (this.view !== "siblings") { this.article.append(...episodes.map((e) => note(e)).filter(Boolean), draw(episodes[0], show)); return; }
      const columns = make("div", "columns");
      episodes.forEach((episode, i) => {
        const column = make("div", "column");
        column.append(make("h4", "", describe(siblings[i])), ...[note(episode)].filter(Boolean), conversation(episode, show));
        columns.append(column);
      });
      this.article.append(columns);
    }

    // The tries of a group: what each got, and what that was worth beside the others.
    strip(entry, siblings) {
      const strip = make("div", "siblings");
      siblings.forEach((other) => {
        const button = make("button", other.success ? "win" : "loss", describe(other));
        button.setAttribute("aria-current", String(other === entry));
        button.addEventListener("click", () => this.choose(other));
        strip.append(button);
      });
      return strip;
    }
  }

  const describe = (e) => `try ${e.member + 1}: reward ${number(e.reward)}` +
    (e.advantage === null ? "" : `, advantage ${e.advantage > 0 ? "+" : ""}${number(e.advantage)}`) +
    `, ${e.turns} ${e.turns === 1 ? "turn" : "turns"}, ${e.status.replaceAll("_", " ")}`;
  const note = (episode) => (episode.error ? make("p", "badge bad", episode.error) : null);

  function shades(output) {
    const bar = make("div", "shades", "trained tokens by log-prob: ");
    ["0", "-0.05", "-0.2", "-0.7", "-1.6", "-3"].forEach((text, i) => {
      const key = make("span");
      key.append(make("i", "token s" + i), text);
      bar.append(key);
    });
    bar.append(output);
    return bar;
  }

  document.querySelectorAll(".browser").forEach((root) => { root.browser = new Browser(root); });
})();

"use strict";
// Draws the report from the data in this file. Every text comes from upstream's files or the generated tree and is put
// into the page as a text node; nothing is ever parsed as HTML. A family is drawn when it is opened.
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const TARGETS = Object.keys(D.targets);
  const AGAINST = D.before !== null;
  const MOVED = AGAINST && D.before.release !== D.release; // to another release, and not only another compiler
  const NARROW = matchMedia("(max-width: 900px)"); // as the style has it
  const SAME = 0, CHANGED = 2;
  const FOLD = 12; // more unchanged lines than this in a row are folded away ...
  const EDGE = 3; // ... but for these at both ends

  // ---------------------------------------------------------------- elements

  function h(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
    return element;
  }

  const plural = (number, one, many) => `${number} ${number === 1 ? one : many || one + "s"}`;
  const chip = (text, kind, title) => h("span", { class: `chip ${kind}`, title }, text);
  const word = (text) => text.replaceAll(" ", "-");
  const stateChip = (state) => chip(state === "none" ? "—" : state, `state-${word(state)}`);
  const driftChip = (drift) => chip(drift, `drift-${word(drift)}`);
  const outcomeChip = (outcome) => chip(outcome, `outcome-${word(outcome)}`);
  const exponent = (value) => (value ? value.toExponential(1).replace("e-", "e−") : "0");

  // ---------------------------------------------------------------- what is asked of a family

  const ORDER = {
    outcome: ["newly refused", "removed", "changed", "new", "newly supported", "refused", "unchanged"],
    drift: ["removed", "new", "semantic", "spelling only", "not compared", "unchanged"],
    state: ["failed", "generated", "refused", "default verified", "verified", "none"],
  };
  const NAMES = {
    state: ["verified", "default verified", "failed", "generated", "refused"],
    drift: ["semantic", "spelling only", "unchanged", "new", "removed", "not compared"],
    outcome: ["newly refused", "changed", "new", "newly supported", "removed", "refused", "unchanged"],
  };

  const worst = (shown) => (shown.errors ? Math.max(0, ...Object.values(shown.errors)) : -1);
  const fileOf = (shown) => (shown.file === null || shown.file === undefined ? null : D.files[shown.file]);
  function touched(shown) {
    const file = fileOf(shown);
    if (!file) return -1;
    const [gone, come] = AGAINST ? file.sinceChanged : file.changed;
    return gone + come;
  }

  // How much a reviewer has to look at: what was lost first, then what changed in meaning, then what changed at all.
  function urgency(family) {
    let found = 0;
    for (const target of TARGETS) {
      const shown = family.targets[target];
      const file = fileOf(shown);
      if (file && file.edited) found = Math.max(found, 9);
      if (shown.state === "failed") found = Math.max(found, 8);
      if (shown.outcome === "newly refused") found = Math.max(found, 7);
      if (shown.outcome === "removed") found = Math.max(found, 6);
      if (MOVED && shown.unexplained) found = Math.max(found, 5);
      if (shown.outcome === "changed") found = Math.max(found, family.drift === "semantic" ? 4 : 3);
      if (shown.outcome === "new" || shown.outcome === "newly supported") found = Math.max(found, 2);
    }
    return Math.max(found, family.drift === "semantic" ? 1 : 0);
  }

  // ---------------------------------------------------------------- search

  const lower = []; // the lines, in lower case, made when something is first searched for
  function linesWith(term) {
    if (!lower.length) for (const line of D.lines) lower.push(line.toLowerCase());
    const found = new Set();
    lower.forEach((line, number) => line.includes(term) && found.add(number));
    return found;
  }

  function changedIn(blocks, into) {
    for (const block of blocks) {
      if (block[0] !== CHANGED) continue;
      if (block[1]) into.push(block[2]);
      if (block[3]) into.push(block[4]);
    }
  }

  const known = new Map();
  const once = (key, make) => {
    if (!known.has(key)) known.set(key, make());
    return known.get(key);
  };

  const fileLines = (file) =>
    once(file, () => {
      const found = [];
      for (const cls of file.classes) for (const method of [...cls.methods, ...cls.extra]) changedIn(method.rows, found);
      for (const hunk of file.since) changedIn(hunk.rows, found);
      return found;
    });
  const upstreamLines = (path) =>
    once("upstream " + path, () => {
      const found = [];
      for (const hunks of Object.values(D.upstream[path] || {})) for (const rows of hunks) changedIn(rows, found);
      return found;
    });
  const fileWords = (file) =>
    once("words " + file.name, () =>
      [file.name, ...file.rules, ...file.classes.flatMap((c) => [c.upstream, c.variant, ...c.methods.map((m) => m.name)])]
        .join("\n")
        .toLowerCase(),
    );
  const refusalWords = (shown) =>
    shown.diagnostics.flatMap((d) => [d.place, d.rule, d.expected, d.found, d.help]).join("\n").toLowerCase();

  function terms(query) {
    const text = query.trim().toLowerCase();
    if (text.length > 2 && text.startsWith('"') && text.endsWith('"')) return [text.slice(1, -1)];
    return text.split(/\s+/).filter(Boolean);
  }

  // How often a family has the term: 0 not at all, 0.5 in a name, else the number of changed lines that have it.
  function hits(family, targets, term, lines) {
    let named = `${family.name}\n${family.head}\n${family.path}`.toLowerCase().includes(term);
    let count = 0;
    for (const target of targets) {
      const shown = family.targets[target];
      const file = fileOf(shown);
      named = named || refusalWords(shown).includes(term) || (file !== null && fileWords(file).includes(term));
      if (file) for (const line of fileLines(file)) count += lines.has(line);
    }
    for (const line of upstreamLines(family.path)) count += lines.has(line);
    return count || (named ? 0.5 : 0);
  }

  // ---------------------------------------------------------------- state

  const view = {
    query: "", target: "", state: "", drift: "", outcome: "", rule: "",
    sort: AGAINST ? "urgency" : "name", descending: AGAINST,
    tab: TARGETS[0],
    last: null, // the family that was open or focused last
  };
  let shownFamilies = [];
  let matches = new Map();

  const targetsShown = () => (view.target ? [view.target] : TARGETS);

  function fits(family) {
    if (view.drift && family.drift !== view.drift) return false;
    return targetsShown().some((target) => {
      const shown = family.targets[target];
      const file = fileOf(shown);
      return (
        (!view.state || shown.state === view.state) &&
        (!view.outcome || shown.outcome === view.outcome) &&
        (!view.rule || (file !== null && file.rules.includes(view.rule)) ||
          shown.diagnostics.some((d) => d.rule === view.rule))
      );
    });
  }

  const KEYS = {
    urgency: (f) => urgency(f),
    name: (f) => f.name,
    drift: (f) => -ORDER.drift.indexOf(f.drift),
  };
  for (const target of TARGETS) {
    KEYS[`${target} state`] = (f) => -ORDER.state.indexOf(f.targets[target].state);
    KEYS[`${target} outcome`] = (f) => -ORDER.outcome.indexOf(f.targets[target].outcome);
    KEYS[`${target} lines`] = (f) => touched(f.targets[target]);
    KEYS[`${target} error`] = (f) => worst(f.targets[target]);
  }

  function choose() {
    const wanted = terms(view.query).map((term) => [term, linesWith(term)]);
    matches = new Map();
    shownFamilies = D.families.filter((family) => {
      if (!fits(family)) return false;
      let lines = 0;
      for (const [term, found] of wanted) {
        const number = hits(family, targetsShown(), term, found);
        if (!number) return false;
        lines = Math.max(lines, Math.floor(number));
      }
      matches.set(family.name, lines);
      return true;
    });
    const key = KEYS[view.sort];
    const sign = view.descending ? -1 : 1;
    shownFamilies.sort((a, b) => {
      const [one, other] = [key(a), key(b)];
      return one < other ? -sign : one > other ? sign : a.name < b.name ? -1 : 1;
    });
  }

  // ---------------------------------------------------------------- frame

  const app = document.getElementById("app");
  const search = h("input", {
    id: "search", type: "search", placeholder: "family, class, rule, text of the diff", autocomplete: "off",
    spellcheck: "false", "aria-label": "Search families, classes, rules and changed lines", "aria-keyshortcuts": "/",
    oninput: () => {
      view.query = search.value;
      if (openFamily()) location.hash = "#/";
      else drawOverview();
    },
  });
  const count = h("p", { id: "count", role: "status" });
  const main = h("main", { id: "main", tabindex: "-1" });
  const filters = h("div", { class: "filters" });
  const help = h("dialog", { id: "help", "aria-labelledby": "help-title" });

  function select(name, label, values) {
    const box = h("select", {
      id: `filter-${name}`,
      onchange: () => {
        view[name] = box.value;
        if (openFamily()) location.hash = "#/";
        else drawOverview();
      },
    });
    box.append(h("option", { value: "" }, "any"));
    for (const value of values) box.append(h("option", { value }, value));
    return h("label", { class: "filter" }, h("span", {}, label), box);
  }

  function drawFrame() {
    const rules = [...new Set([...D.files.flatMap((f) => f.rules),
      ...D.families.flatMap((f) => TARGETS.flatMap((t) => f.targets[t].diagnostics.map((d) => d.rule)))])].sort();
    const present = (name, of) => NAMES[name].filter((value) => D.families.some((family) => of(family).includes(value)));
    filters.append(
      select("target", "target", TARGETS),
      select("state", "status", present("state", (f) => TARGETS.map((t) => f.targets[t].state))),
      ...(AGAINST
        ? [select("drift", "upstream", present("drift", (f) => [f.drift])),
           select("outcome", "variant", present("outcome", (f) => TARGETS.map((t) => f.targets[t].outcome)))]
        : []),
      select("rule", "rule", rules),
      h("button", { id: "reset", type: "button", onclick: reset }, "Reset"),
    );
    const title = AGAINST
      ? h("span", {}, `transformers ${MOVED ? D.before.release + " → " : ""}${D.release}, against `,
          h("code", { title: D.before.commit }, D.before.revision))
      : h("span", {}, `transformers ${D.release}`);
    app.append(
      h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); main.focus(); } }, "Skip to content"),
      h("header", {},
        h("div", { class: "bar" },
          h("h1", {}, h("a", { href: "#/" }, "regraft report")), title,
          h("button", { id: "help-button", type: "button", class: "quiet", "aria-haspopup": "dialog", onclick: () => help.showModal() },
            "Keys ", h("kbd", {}, "?"))),
        h("div", { class: "controls", role: "search" }, search, filters, count)),
      main, help);
    const row = (keys, text) => h("tr", {}, h("td", {}, keys.map((key) => h("kbd", {}, key))), h("td", {}, text));
    help.append(
      h("h2", { id: "help-title" }, "Keys"),
      h("table", { class: "keys" }, h("tbody", {},
        row(["/"], "search; words must all be there, “\"several words\"” as they stand; Enter goes to the first result"),
        row(["j", "k"], "next, previous family, in the list and when one is open"),
        row(["Enter", "o"], "open the family"),
        row(["n", "p"], "next, previous change"),
        row(["t"], "other target"),
        row(["x"], "show or fold all unchanged lines"),
        row(["Esc"], "leave the search box; back to the list"),
        row(["?"], "this help"))),
      h("form", { method: "dialog" }, h("button", {}, "Close")));
  }

  function reset() {
    for (const name of ["state", "target", "drift", "outcome", "rule", "query"]) view[name] = "";
    for (const box of filters.querySelectorAll("select")) box.value = "";
    search.value = "";
    if (openFamily()) location.hash = "#/";
    else drawOverview();
  }

  function setFilter(changes) {
    for (const name of ["state", "target", "drift", "outcome", "rule"]) {
      view[name] = changes[name] || "";
      const box = document.getElementById(`filter-${name}`);
      if (box) box.value = view[name];
    }
    drawOverview();
    (main.querySelector("tbody a") || main.querySelector(".summary button"))?.focus();
  }

  // ---------------------------------------------------------------- overview

  function summary() {
    const box = h("section", { class: "summary", "aria-label": "Summary" });
    const line = (label, parts) => parts.length && box.append(h("div", { class: "tally" }, h("span", { class: "label" }, label), parts));
    const counted = (values, order, kind, changes) =>
      order
        .map((value) => [value, values.filter((v) => v === value).length])
        .filter(([, number]) => number)
        .map(([value, number]) =>
          h("button", { type: "button", class: `chip ${kind}-${word(value)}`, onclick: () => setFilter(changes(value)) },
            h("b", {}, String(number)), ` ${value}`));
    if (AGAINST) line("upstream", counted(D.families.map((f) => f.drift), NAMES.drift, "drift", (drift) => ({ drift })));
    for (const target of TARGETS) {
      if (AGAINST) {
        const found = D.families.map((f) => f.targets[target].outcome);
        line(`${target} variants`, counted(found, NAMES.outcome, "outcome", (outcome) => ({ outcome, target })));
      }
      const states = D.families.map((f) => f.targets[target].state);
      line(AGAINST ? "now" : target, counted(states, NAMES.state, "state", (state) => ({ state, target })));
    }
    if (D.edited.length)
      box.append(h("p", { class: "warning", role: "alert" }, `Edited by hand: ${D.edited.join(", ")}. Lines that no rule made are marked.`));
    return box;
  }

  function headings() {
    const sorted = (key, label, title, kind) => {
      const current = view.sort === key;
      const [target, rest] = key.split(" "); // where there is no room for the line of targets, each column says its own
      return h("th", { scope: "col", class: kind, "aria-sort": current ? (view.descending ? "descending" : "ascending") : "none" },
        h("button", { type: "button", title, "data-sort": key,
          onclick: () => {
            view.descending = current ? !view.descending : key !== "name";
            view.sort = key;
            drawOverview();
            main.querySelector(`[data-sort="${CSS.escape(key)}"]`).focus();
          } }, rest && h("span", { class: "narrow" }, `${target} `), label, h("span", { class: "arrow", "aria-hidden": "true" }, current ? (view.descending ? " ▾" : " ▴") : "")));
    };
    const targets = targetsShown();
    const width = AGAINST ? 4 : 3;
    return h("thead", {},
      h("tr", { class: "groups" },
        h("th", { colspan: AGAINST ? 3 : 1 }, h("span", { class: "hidden" }, "Family")),
        targets.map((target) => h("th", { scope: "colgroup", colspan: width, class: "group" }, target))),
      h("tr", {},
        sorted("name", "family"),
        AGAINST && sorted("urgency", "look", "What was lost first, then what changed in meaning, then what changed at all", "look"),
        AGAINST && sorted("drift", "upstream", "The methods that variants are derived from, and what these rely on"),
        targets.map((target) => [
          AGAINST && sorted(`${target} outcome`, "variant", null, "group"),
          sorted(`${target} state`, "status", null, AGAINST ? null : "group"),
          sorted(`${target} lines`, "lines", AGAINST ? "Lines of the variant that changed since the revision" : "Lines that differ from upstream's", "number"),
          sorted(`${target} error`, "error", "The largest error that verification measured", "number"),
        ])));
  }

  const LOOK = ["", "upstream", "new", "changed", "semantic", "unexplained", "removed", "lost", "failed", "edited"];

  function overviewRow(family) {
    const number = matches.get(family.name);
    const cells = targetsShown().map((target) => {
      const shown = family.targets[target];
      const file = fileOf(shown);
      const [gone, come] = file ? (AGAINST ? file.sinceChanged : file.changed) : [0, 0];
      const first = shown.diagnostics[0];
      const why = first && `[${first.rule}] ${first.place}: expected ${first.expected}; found ${first.found}`;
      return [
        AGAINST && h("td", { class: "group" }, outcomeChip(shown.outcome)),
        h("td", { class: AGAINST ? "" : "group", title: why, colspan: first && !NARROW.matches ? 3 : null }, stateChip(shown.state), first && h("span", { class: "by" }, " ", first.rule)),
        first ? null : h("td", { class: "number" }, file && (gone || come)
          ? [h("span", { class: "come" }, `+${come}`), " ", h("span", { class: "gone" }, `−${gone}`)] : ""),
        first ? null : h("td", { class: "number" }, shown.errors ? exponent(worst(shown)) : ""),
      ];
    });
    const level = urgency(family);
    return h("tr", { "data-family": family.name },
      h("th", { scope: "row" },
        h("a", { href: address(family.name), title: `${family.head} in ${family.path}` }, family.name),
        number ? h("span", { class: "matches" }, " ", plural(number, "changed line")) : null),
      AGAINST && h("td", { class: `look look-${level}` }, LOOK[level]),
      AGAINST && h("td", {}, driftChip(family.drift)),
      cells);
  }

  function drawOverview() {
    choose();
    document.body.className = "overview";
    count.textContent = shownFamilies.length === D.families.length
      ? plural(D.families.length, "family", "families") : `${shownFamilies.length} of ${plural(D.families.length, "family", "families")}`;
    const table = h("table", { class: "families" }, h("caption", { class: "hidden" }, "Every type of upstream's causal-LM mapping"),
      headings(), h("tbody", {}, shownFamilies.map(overviewRow)));
    main.replaceChildren(summary(), h("div", { class: "scroll" }, table),
      ...(shownFamilies.length ? [] : [h("p", { class: "nothing" }, "No family fits. ", h("button", { type: "button", onclick: reset }, "Reset"))]));
  }

  // ---------------------------------------------------------------- code

  const KEYWORDS = new Set(("and as assert async await break class continue def del elif else except finally for from global if " +
    "import in is lambda nonlocal not or pass raise return try while with yield").split(" "));
  const VALUES = new Set(["None", "True", "False", "self", "cls", "super"]);
  const PIECE = /(#.*)|([rbfuRBFU]{0,2}(?:"""|'''))|([rbfuRBFU]{0,2}"(?:[^"\\]|\\.)*"|[rbfuRBFU]{0,2}'(?:[^'\\]|\\.)*')|(@[\w.]+)|(\d[\w.]*)|([A-Za-z_]\w*)/g;

  const openQuote = (quoted) => ({ quote: quoted ? '"""' : "" });

  // What of a line is coloured how; `inside` remembers an open triple quote from line to line.
  function coloured(text, inside) {
    const found = [];
    let at = 0;
    if (inside.quote) {
      const end = text.indexOf(inside.quote);
      at = end < 0 ? text.length : end + 3;
      found.push([0, at, "s"]);
      if (end < 0) return found;
      inside.quote = "";
    }
    PIECE.lastIndex = at;
    for (let match; (match = PIECE.exec(text)); ) {
      const [all, comment, triple, string, decorator, number, name] = match;
      let end = match.index + all.length;
      if (triple) {
        const quote = triple.slice(-3);
        const close = text.indexOf(quote, end);
        if (close < 0) inside.quote = quote;
        end = close < 0 ? text.length : close + 3;
        PIECE.lastIndex = end;
      }
      const kind = comment ? "c" : triple || string ? "s" : decorator ? "d" : number ? "n"
        : KEYWORDS.has(name) ? "k" : VALUES.has(name) ? "v" : text[end] === "(" ? "f" : "";
      if (kind) found.push([match.index, end, kind]);
    }
    return found;
  }

  // The line as text nodes in spans: colours and emphasis may overlap, so it is cut wherever one of them begins or ends.
  function code(text, spans, inside) {
    const colours = coloured(text, inside);
    const cuts = new Set([0, text.length]);
    for (const [start, end] of colours) cuts.add(start).add(end);
    for (const column of spans) cuts.add(column);
    const ordered = [...cuts].sort((a, b) => a - b);
    const result = document.createDocumentFragment();
    let colour = 0;
    for (let i = 0; i + 1 < ordered.length; i++) {
      const [start, end] = [ordered[i], ordered[i + 1]];
      while (colour < colours.length && colours[colour][1] <= start) colour++;
      const kind = colour < colours.length && colours[colour][0] <= start ? colours[colour][2] : "";
      let strong = false;
      for (let k = 0; k + 1 < spans.length; k += 2) strong = strong || (spans[k] <= start && end <= spans[k + 1]);
      const part = text.slice(start, end);
      result.append(kind || strong ? h("span", { class: `${kind}${strong ? " em" : ""}` }, part) : part);
    }
    return result;
  }

  // `room` is how many lines there are for it: those of the change, and a few below that say nothing themselves.
  function ruleBox(ids, room) {
    const names = ids.filter(Boolean);
    if (!names.length) return null;
    const box = h("div", { class: `made${names.includes("unexplained") ? " bad" : ""}`, tabindex: room < 3 * names.length ? "0" : null },
      names.map((id) => h("p", {}, h("span", { class: "rule" }, id), " ", h("span", { class: "why" }, (D.rules[id] || { why: "" }).why))));
    box.style.webkitLineClamp = String(room); // the rest is shown when pointed at or focused
    return box;
  }

  // Blocks of rows as a table: left, right, and beside each change who made it.
  function diffTable(blocks, label, titles, quoted) {
    const body = h("tbody");
    const inside = (quoted || [false, false]).map(openQuote);
    const cell = (side, number, line, spans, kind) => [
      h("td", { class: `no ${kind}` }, number ? String(number) : ""),
      h("td", { class: `code ${side ? "right" : "left"} ${kind}` }, number ? code(D.lines[line], spans, inside[side]) : ""),
    ];
    const same = (left, right, line) => h("tr", { class: "same" },
      cell(0, left, line, [], ""), cell(1, right, line, [], ""), titles[2] && h("td", { class: "by" }));

    const sets = (i) => (blocks[i][0] === CHANGED ? blocks[i][5] : -1);
    for (let i = 0; i < blocks.length; i++) {
      const block = blocks[i];
      if (block[0] === SAME) {
        const rows = [];
        for (let k = 3; k < block.length; k++) rows.push(same(block[1] + k - 3, block[2] + k - 3, block[k]));
        if (rows.length > FOLD) fold(rows.slice(EDGE, -EDGE), (row) => body.append(row), rows.slice(0, EDGE), rows.slice(-EDGE));
        else body.append(...rows);
        continue;
      }
      const [kind, leftNumber, left, rightNumber, right, set, leftSpans, rightSpans] = block;
      const changed = kind === CHANGED;
      const [ours, theirs] = [leftNumber ? (changed ? "gone" : "moved") : "none", rightNumber ? (changed ? "come" : "moved") : "none"];
      const row = h("tr", { class: changed ? "changed" : "layout", title: changed ? null : "the same on other lines" },
        cell(0, leftNumber, left, leftSpans || [], ours), cell(1, rightNumber, right, rightSpans || [], theirs));
      let start = i;
      while (start > 0 && blocks[start - 1][0] !== SAME) start--;
      const firstChange = changed && blocks.slice(start, i).every((b) => b[0] !== CHANGED);
      if (firstChange) {
        row.setAttribute("tabindex", "-1");
        row.setAttribute("data-change", "");
      }
      if (titles[2] && (i === 0 || sets(i - 1) !== sets(i) || blocks[i - 1][0] !== kind)) {
        let size = 1;
        while (i + size < blocks.length && blocks[i + size][0] === kind && sets(i + size) === sets(i)) size++;
        const below = blocks[i + size];
        const room = size + (below && below[0] === SAME ? Math.min(below.length - 3, EDGE - 1) : 0);
        row.append(h("td", { class: `by ${changed ? "marked" : ""}`, rowspan: size > 1 ? size : null }, changed ? ruleBox(D.sets[set], room) : null));
      }
      body.append(row);
    }
    const head = h("thead", {}, h("tr", {}, h("th", { scope: "col", colspan: 2 }, titles[0]), h("th", { scope: "col", colspan: 2 }, titles[1]),
      titles[2] && h("th", { scope: "col", class: "by" }, titles[2])));
    const columns = h("colgroup", {}, ["no", "code", "no", "code", ...(titles[2] ? ["by"] : [])].map((name) => h("col", { class: name })));
    return h("table", { class: "diff" }, h("caption", { class: "hidden" }, label), columns, head, body);
  }

  function fold(hidden, append, before, after) {
    before.forEach(append);
    const button = h("button", { type: "button", "aria-expanded": "false" }, `${hidden.length} unchanged lines`);
    const row = h("tr", { class: "fold" }, h("td", { colspan: 5 }, button));
    row.unfold = () => { row.replaceWith(...hidden); hidden[0].folded = row; hidden[0].classList.add("unfolded"); };
    hidden[0].refold = () => { hidden[0].before(row); hidden.forEach((r) => r.remove()); };
    button.addEventListener("click", () => { row.unfold(); hidden[0].setAttribute("tabindex", "-1"); hidden[0].focus({ preventScroll: true }); });
    append(row);
    after.forEach(append);
  }

  function toggleFolds(openAll) {
    const folded = [...main.querySelectorAll("tr.fold")];
    if (openAll || folded.length) folded.forEach((row) => row.unfold());
    else main.querySelectorAll("tr.unfolded").forEach((row) => row.refold());
  }

  // ---------------------------------------------------------------- family

  const address = (name, target) => `#/${encodeURIComponent(name)}${target ? "/" + target : ""}`;
  function openFamily() {
    const [, name, target] = location.hash.split("/").map((part) => {
      try { return decodeURIComponent(part); } catch { return part; } // an address that was cut off in a message
    });
    const family = name ? D.families.find((f) => f.name === name) : null;
    return family ? { family, target: TARGETS.includes(target) ? target : view.tab } : null;
  }

  function figures(target, shown) {
    const titles = D.targets[target].measures;
    const was = shown.before || {};
    if (!shown.errors && !was.errors) return null;
    const names = Object.keys(titles).filter((n) => (shown.errors || {})[n] !== undefined || (was.errors || {})[n] !== undefined);
    const line = (label, from) => h("tr", {}, h("th", { scope: "row" }, label), h("td", { class: "number" }, from.cases ?? ""),
      names.map((n) => h("td", { class: "number" }, from.errors && from.errors[n] !== undefined ? exponent(from.errors[n]) : "")));
    const latest = shown.errors ? shown : was;
    const brief = [plural(latest.cases, "case"), ...names.filter((n) => latest.errors[n] !== undefined).map((n) => `${titles[n]} ${exponent(latest.errors[n])}`)];
    return h("details", {}, h("summary", {}, shown.errors ? "Parity: " : `Parity at ${D.before.revision}: `, h("span", { class: "note" }, brief.join(", "))),
      h("table", { class: "figures" },
        h("thead", {}, h("tr", {}, h("td"), h("th", { scope: "col" }, "cases"), names.map((n) => h("th", { scope: "col" }, titles[n])))),
        h("tbody", {}, AGAINST && was.errors ? line(`at ${D.before.revision}`, was) : null,
          shown.errors ? line("now", shown) : h("tr", {}, h("th", { scope: "row" }, "now"), h("td", { colspan: names.length + 1 }, "not verified since it or its upstream last changed")))),
      h("p", { class: "meaning" }, D.targets[target].meaning));
  }

  function diagnostic(one) {
    return h("article", { class: "diagnostic" },
      h("p", {}, h("span", { class: "rule" }, one.rule), " ", h("code", {}, one.place)),
      h("dl", {}, h("dt", {}, "expected"), h("dd", {}, one.expected), h("dt", {}, "found"), h("dd", {}, h("code", {}, one.found)),
        h("dt", {}, "help"), h("dd", {}, one.help)),
      one.lines ? h("table", { class: "excerpt" }, h("caption", { class: "hidden" }, `Upstream's text around ${one.place}`),
        h("tbody", {}, (() => {
          const inside = openQuote(one.quoted);
          return one.lines.map((line, k) => h("tr", { class: one.first + k === one.line ? "here" : "" },
            h("td", { class: "no" }, String(one.first + k)), h("td", { class: "code" }, code(D.lines[line], [], inside))));
        })())) : null);
  }

  const slug = (...parts) => parts.join("-").replace(/[^\w-]/g, "_");

  function upstreamSection(family) {
    const changes = D.upstream[family.path] || {};
    const methods = family.methods.map(([name, drift]) => [D.lines[name], drift]);
    const kinds = ["semantic", "new", "removed", "spelling only", "unchanged"];
    const shown = kinds.filter((kind) => kind !== "unchanged").flatMap((kind) =>
      methods.filter(([, drift]) => drift === kind).map(([name]) => {
        const hunks = changes[name] || [];
        const titles = [`upstream ${D.before.release}`, `upstream ${D.release}`];
        return h("details", { class: "upstream", open: kind !== "spelling only" }, h("summary", {}, driftChip(kind), " ", h("code", {}, name)),
          hunks.length ? hunks.map((rows) => diffTable(rows, `${name} in ${titles[0]} and ${titles[1]}`, titles))
            : h("p", { class: "meaning" }, "Only docstring, comments or layout differ."));
      }));
    const still = methods.filter(([, drift]) => drift === "unchanged").map(([name]) => name);
    return h("section", { "aria-labelledby": "upstream" },
      h("h3", { id: "upstream" }, MOVED ? `Upstream: ${D.before.release} → ${D.release}` : `Upstream: still ${D.release}`),
      methods.length ? null : h("p", { class: "meaning" }, "Not compared: the family has no variant in either release."),
      shown,
      still.length ? h("details", { class: "upstream" }, h("summary", {}, driftChip("unchanged"), ` ${plural(still.length, "method")}`),
        h("p", { class: "list" }, still.map((name) => [h("code", {}, name), " "]))) : null,
      family.imported.length ? h("details", { class: "upstream" }, h("summary", {}, "changed in other files that these rely on"),
        family.imported.map(([name, drift]) => h("p", { class: "list" }, driftChip(drift), " ", h("code", {}, D.lines[name])))) : null);
  }

  function sinceSection(shown, file) {
    const title = h("h3", { id: "since" }, `Variant: ${D.before.revision} → now`);
    if (!file) return null;
    if (!file.since.length) {
      const text = shown.outcome === "unchanged" || shown.outcome === "changed" ? "The text is the same." : "There was no variant.";
      return h("section", { "aria-labelledby": "since" }, title, h("p", { class: "meaning" }, text));
    }
    const titles = [`${file.name} at ${D.before.revision}`, `${file.name} now`, "made by"];
    return h("section", { "aria-labelledby": "since" }, title,
      MOVED && shown.unexplained ? h("p", { class: "warning" }, "The variant changed and no method of upstream did: the compiler did, or what the variant takes from elsewhere.") : null,
      file.since.map((hunk) => [h("h4", {}, h("code", {}, hunk.name || "outside of classes")), diffTable(hunk.rows, `Change in ${hunk.name}`, titles, hunk.quoted)]));
  }

  function classSection(file, cls) {
    const id = slug("c", cls.variant);
    const runtime = cls.variant.includes(".");
    const titles = [`upstream ${D.release}`, runtime ? cls.variant : file.name, "made by"];
    const methods = [...cls.methods, ...cls.extra];
    return h("section", { class: "class", "aria-labelledby": id },
      h("h4", { id, tabindex: "-1" }, h("code", {}, cls.upstream), " → ", h("code", {}, cls.variant), h("span", { class: "role" }, cls.role), h("span", { class: "place" }, cls.place)),
      cls.mixin ? h("p", { class: "meaning" }, "The runtime's ", h("code", {}, cls.mixin), " stands in front of upstream's class; no method is rewritten for it.") : null,
      !methods.length && !cls.mixin ? h("p", { class: "meaning" }, "No method is overridden.") : null,
      runtime ? h("p", { class: "meaning" }, "The runtime has this function already; the variant imports it.") : null,
      methods.map((method) => [h("h5", {}, h("code", {}, method.name), h("span", { class: "place" }, `line ${method.line}`)),
        diffTable(method.rows, `${method.name}: upstream and variant`, titles)]));
  }

  function rulesUsed(file) {
    const lines = {};
    for (const cls of file.classes) for (const method of [...cls.methods, ...cls.extra]) for (const block of method.rows)
      if (block[0] === CHANGED) for (const id of D.sets[block[5]]) lines[id] = (lines[id] || 0) + 1;
    return h("details", {}, h("summary", {}, `Rules: ${file.rules.length}`),
      h("table", { class: "rules" }, h("thead", {}, h("tr", {}, ["rule", "rows", "what it does", "why"].map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, file.rules.map((id) => h("tr", {}, h("th", { scope: "row" }, h("code", {}, id)), h("td", { class: "number" }, String(lines[id] || 0)),
          h("td", {}, (D.rules[id] || {}).summary || ""), h("td", {}, (D.rules[id] || {}).why || ""))))));
  }

  function drawFamily({ family, target }) {
    view.tab = target;
    view.last = family.name;
    document.body.className = "family";
    if (!shownFamilies.includes(family)) choose();
    const at = shownFamilies.indexOf(family);
    const shown = family.targets[target];
    const file = fileOf(shown);
    const step = (by, label, key) => {
      const next = shownFamilies[at + by];
      return at >= 0 && next
        ? h("a", { class: "button", href: address(next.name), "aria-keyshortcuts": key }, label, " ", h("kbd", {}, key)) : h("span", { class: "button off" }, label);
    };
    const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Target" }, TARGETS.map((name) =>
      h("a", { role: "tab", id: `tab-${name}`, href: address(family.name, name), "aria-selected": String(name === target), "aria-controls": "panel",
        tabindex: name === target ? "0" : "-1" }, name, " ", stateChip(family.targets[name].state))));
    tabs.addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") { event.preventDefault(); otherTarget(event.key === "ArrowRight" ? 1 : -1, true); }
    });
    const others = D.families.filter((f) => f !== family && f.path === family.path).map((f) => f.name);
    const sections = [
      shown.diagnostics.length ? h("section", { "aria-labelledby": "refused" },
        h("h3", { id: "refused" }, `Refused: ${plural(shown.diagnostics.length, "reason")}`), shown.diagnostics.map(diagnostic)) : null,
      AGAINST && family.drift !== "new" && family.drift !== "removed" ? upstreamSection(family) : null,
      AGAINST ? sinceSection(shown, file) : null,
      file ? h("section", { "aria-labelledby": "variant" }, h("h3", { id: "variant" }, "Upstream → variant"), rulesUsed(file),
        file.classes.map((cls) => classSection(file, cls))) : null,
    ];
    const changes = () => [...main.querySelectorAll("[data-change]")];
    main.replaceChildren(
      h("div", { class: "title" },
        h("div", {}, h("h2", { id: "name", tabindex: "-1" }, family.name), h("p", { class: "place" }, `${family.head} in ${family.path}`,
          others.length ? h("span", {}, "; the file also serves ", others.map((name, k) => [k ? ", " : "", h("a", { href: address(name) }, name)])) : null)),
        h("nav", { "aria-label": "Families" }, h("span", { class: "position" }, at >= 0 ? `${at + 1} of ${shownFamilies.length}` : ""),
          step(-1, "Previous", "k"), step(1, "Next", "j"), h("a", { class: "button", href: "#/" }, "List ", h("kbd", {}, "Esc")))),
      tabs,
      h("div", { id: "panel", role: "tabpanel", "aria-labelledby": `tab-${target}` },
        h("p", { class: "facts" },
          AGAINST ? ["upstream ", driftChip(family.drift), " variant ", outcomeChip(shown.outcome), " "] : null,
          "status ", AGAINST && shown.before && shown.before.state !== shown.state ? [stateChip(shown.before.state), " → "] : null, stateChip(shown.state),
          shown.note ? h("span", { class: "note" }, " ", shown.note) : null,
          file && file.edited ? chip("edited by hand", "outcome-newly-refused") : null,
          file ? h("span", { class: "note" }, ` ${file.name}, `, h("span", { class: "come" }, `+${file.changed[1]}`), " ",
            h("span", { class: "gone" }, `−${file.changed[0]}`), " lines to upstream") : null,
          h("button", { id: "unfold", type: "button", class: "quiet", onclick: () => toggleFolds(false) }, "Unchanged lines ", h("kbd", {}, "x"))),
        figures(target, shown),
        sections));
    count.textContent = plural(changes().length, "change");
    emphasize();
  }

  // Where the open family has what was searched for.
  function emphasize() {
    if (!window.CSS || !CSS.highlights) return;
    CSS.highlights.clear();
    const wanted = terms(view.query);
    if (!wanted.length) return;
    const found = new Highlight();
    for (const cell of main.querySelectorAll("td.code, .rule")) {
      const text = cell.textContent.toLowerCase();
      for (const term of wanted) {
        for (let at = text.indexOf(term); at >= 0; at = text.indexOf(term, at + term.length)) {
          const range = document.createRange();
          let passed = 0;
          const nodes = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
          for (let node; (node = nodes.nextNode()); passed += node.length) {
            if (passed <= at && at < passed + node.length) range.setStart(node, at - passed);
            if (passed < at + term.length && at + term.length <= passed + node.length) range.setEnd(node, at + term.length - passed);
          }
          found.add(range);
        }
      }
    }
    CSS.highlights.set("search", found);
  }

  function otherTarget(by, focusTab) {
    const opened = openFamily();
    if (opened) {
      const next = TARGETS[(TARGETS.indexOf(opened.target) + by + TARGETS.length) % TARGETS.length];
      focusAfter = focusTab ? `tab-${next}` : null;
      location.replace(address(opened.family.name, next));
      return;
    }
    const all = ["", ...TARGETS];
    const focused = document.activeElement.closest("[data-family]")?.dataset.family;
    view.target = all[(all.indexOf(view.target) + by + all.length) % all.length];
    document.getElementById("filter-target").value = view.target;
    drawOverview();
    focusRow(focused);
  }

  // ---------------------------------------------------------------- moving about

  let focusAfter = null;

  const rowOf = (name) => name && main.querySelector(`tr[data-family="${CSS.escape(name)}"] a`);
  function focusRow(name) {
    const link = rowOf(name);
    if (link) { link.focus({ preventScroll: true }); link.scrollIntoView({ block: "nearest" }); }
  }

  function moveRow(by) {
    const links = [...main.querySelectorAll("tbody th a")];
    const current = document.activeElement.closest("[data-family]");
    const at = current ? links.findIndex((link) => current.contains(link)) : by > 0 ? -1 : links.length;
    const next = links[Math.min(Math.max(at + by, 0), links.length - 1)];
    if (next) { view.last = next.closest("[data-family]").dataset.family; focusRow(view.last); }
  }

  function moveChange(by) {
    const changes = [...main.querySelectorAll("[data-change]")].filter((row) => row.offsetParent !== null);
    if (!changes.length) return;
    const current = document.activeElement.closest("tr[data-change]");
    let at = changes.indexOf(current);
    if (at < 0) {
      const below = changes.findIndex((row) => row.getBoundingClientRect().top > 150);
      at = by > 0 ? (below < 0 ? changes.length : below) - 1 : below < 0 ? changes.length : below;
    }
    const next = changes[at + by];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "center" });
    count.textContent = `change ${at + by + 1} of ${changes.length}`;
  }

  function moveFamily(by) {
    const { family } = openFamily();
    const next = shownFamilies[shownFamilies.indexOf(family) + by];
    if (next) location.replace(address(next.name));
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const typing = event.target === search;
    const opened = openFamily();
    if (event.key === "Escape") {
      if (typing) {
        if (search.value) { search.value = ""; view.query = ""; drawOverview(); }
        else search.blur();
      } else if (opened) location.hash = "#/";
      else document.activeElement.blur();
    } else if (typing) {
      if (event.key === "Enter" || event.key === "ArrowDown") moveRow(1);
      else return;
    } else if (event.target.tagName === "SELECT" && event.key !== "?" && event.key !== "/") return;
    else if (event.key === "/") { search.focus(); search.select(); }
    else if (event.key === "?") help.showModal();
    else if (event.key === "j" || event.key === "k") opened ? moveFamily(event.key === "j" ? 1 : -1) : moveRow(event.key === "j" ? 1 : -1);
    else if (event.key === "t") otherTarget(1, false);
    else if (!opened && event.key === "o") rowOf(document.activeElement.closest("[data-family]")?.dataset.family)?.click();
    else if (opened && (event.key === "n" || event.key === "p")) moveChange(event.key === "n" ? 1 : -1);
    else if (opened && event.key === "x") toggleFolds(false);
    else return;
    event.preventDefault();
  });

  let scrolled = 0; // of the list
  function route() {
    const opened = openFamily();
    if (opened) {
      if (document.body.className === "overview") scrolled = window.scrollY;
      drawFamily(opened);
      window.scrollTo(0, 0);
      document.title = `${opened.family.name}, ${opened.target}: regraft report`;
      document.getElementById(focusAfter || "name").focus({ preventScroll: true });
      focusAfter = null;
    } else {
      drawOverview();
      document.title = `regraft report: transformers ${MOVED ? D.before.release + " → " : ""}${D.release}`;
      if (document.activeElement !== search) {
        window.scrollTo(0, scrolled);
        focusRow(view.last);
      }
    }
  }

  window.addEventListener("hashchange", route);
  NARROW.addEventListener("change", () => openFamily() || drawOverview());
  window.addEventListener("beforeprint", () => toggleFolds(true));
  drawFrame();
  choose();
  route();
  document.documentElement.dataset.ready = "";
})();

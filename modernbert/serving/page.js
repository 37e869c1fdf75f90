// The page at `/`: sends the typed text to the server's routes and shows the answers.
//
// Texts are inserted as text, never as HTML. The server counts characters in code points, so strings are split by
// Array.from.

const byId = (id) => document.getElementById(id);
const counted = (number) => number.toLocaleString("en");
const plural = (number, word) => `${counted(number)} ${word}${number === 1 ? "" : "s"}`;
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const isCalm = matchMedia("(prefers-reduced-motion: reduce)");

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.startsWith("aria-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

function bar(share) {
  const inner = make("i");
  inner.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return make("span", { className: "bar", "aria-hidden": "true" }, inner);
}

function listed(pairs) {
  return pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
}

// ---- Requests ----

const storage = {
  // A browser may forbid storage; then the key lives as long as the page does.
  key: "",
  load() { try { this.key = sessionStorage.getItem("key") ?? ""; } catch { /* forbidden */ } },
  keep(key) {
    this.key = key;
    try {
      if (key) sessionStorage.setItem("key", key);
      else sessionStorage.removeItem("key");
    } catch { /* forbidden */ }
  },
};

// Return the server's answer and its timing, or throw an Error with a one-line message.
async function ask(path, body, signal) {
  const isQuestion = body !== undefined;
  const headers = isQuestion ? { "Content-Type": "application/json" } : {};
  // A header holds bytes: the UTF-8 bytes of the key.
  if (storage.key) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(storage.key))}`;
  let response, content;
  try {
    const method = isQuestion ? "POST" : "GET";
    response = await fetch(path, { method, headers, body: JSON.stringify(body), signal });
    content = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("no answer from the server: is it running?");
  }
  let answer;
  try { answer = JSON.parse(content); } catch { /* reported below */ }
  if (!response.ok || answer === undefined) throw refusal(response, answer);
  const header = (name) => (response.headers.has(name) ? Number(response.headers.get(name)) : null);
  const timing = {
    server: header("x-total-time"), waited: header("x-queue-time"), computed: header("x-inference-time"),
    tokens: header("x-compute-tokens"),
  };
  return { answer, timing };
}

function refusal(response, answer) {
  const message = [answer?.error, answer?.detail].find((each) => typeof each === "string");
  if (response.status === 401) {
    askForKey();
    return new Error(storage.key ? "this is not the server's key" : "the server asks for its key");
  }
  const line = message ?? `the server answered ${response.status} and gave no reason`;
  const wait = response.headers.get("retry-after");
  const hasWait = wait === null || line.includes(`${wait} s`);
  return new Error(response.status === 429 && !hasWait ? `${line}, try again in ${wait} s` : line);
}

function askForKey() {
  byId("key-form").hidden = false;
  byId("key-used").hidden = true;
  byId("docs").hidden = true;
}

// ---- A panel: a form and its answer ----

class Panel {
  // `run(ask)` puts an answer into `result` and returns one line about it.
  constructor(name, run) {
    this.root = byId(name);
    this.form = this.root.querySelector("form");
    this.root.append(byId("answer").content.cloneNode(true));
    const part = (kind) => this.root.querySelector(`.answer .${kind}`);
    [this.answer, this.status, this.alert] = [this.root.querySelector(".answer"), part("status"), part("alert")];
    [this.result, this.timings, this.command] = [part("result"), part("timings"), part("command")];
    this.run = run;
    this.form.querySelector(".actions").append(make("kbd", {}, "Ctrl+Enter"));
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.start(); });
    this.form.addEventListener("input", () => this.changed());
    this.form.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.start();
    });
  }

  // The shown answer is of an earlier text.
  changed() {
    const wasRunning = this.running !== undefined;
    this.stop();
    this.alert.textContent = "";
    if (wasRunning || this.result.childElementCount) {
      const what = wasRunning ? "Stopped, the text has changed." : "The text has changed since.";
      this.status.textContent = `${what} Ctrl+Enter asks again.`;
    }
  }

  stop() {
    this.running?.abort();
    this.running = undefined;
    this.answer.classList.remove("is-running");
    this.result.removeAttribute("aria-busy");
  }

  async start() {
    this.stop();
    const mine = (this.running = new AbortController());
    const asked = [];
    const started = performance.now();
    this.alert.textContent = "";
    this.status.textContent = "Asking";
    this.answer.classList.add("is-running");
    this.result.setAttribute("aria-busy", "true");
    try {
      const line = await this.run(async (path, body) => {
        const one = { path, body };
        asked.push(one);
        const { answer, timing } = await ask(path, body, mine.signal);
        one.timing = timing;
        // Drop the answer to an earlier text.
        mine.signal.throwIfAborted();
        return answer;
      });
      this.status.textContent = line;
      this.showTimings(asked, performance.now() - started);
    } catch (error) {
      if (this.running !== mine) return;
      mine.abort();
      for (const part of [this.result, this.timings]) part.replaceChildren();
      this.command.hidden = true;
      this.status.textContent = "";
      this.alert.textContent = error.message;
    }
    if (this.running === mine) this.stop();
  }

  showTimings(asked, milliseconds) {
    const known = (name) => asked.map((one) => one.timing[name]).filter((value) => value !== null);
    const rows = [];
    if (asked.length) rows.push(["Seen here", `${milliseconds.toFixed(0)} ms`]);
    for (const [label, name] of [["Server", "server"], ["Waited", "waited"], ["Computed", "computed"]]) {
      if (known(name).length) rows.push([label, `${Math.max(...known(name))} ms`]);
    }
    if (known("tokens").length) rows.push(["Tokens", counted(known("tokens").reduce((sum, each) => sum + each, 0))]);
    if (asked.length > 1) rows.push(["Requests", `${asked.length}, at once; the longest is shown`]);
    this.timings.replaceChildren(...listed(rows));
    this.command.hidden = !asked.length;
    if (asked.length) this.command.lastElementChild.textContent = commandOf(asked[0]);
  }
}

function commandOf({ path, body }) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const key = storage.key ? ' \\\n  -H "Authorization: Bearer $KEY"' : "";
  return `curl ${new URL(path, document.baseURI)}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}

// ---- Masks ----

const MASKS_EXAMPLE = "The capital of France is [MASK], and most people there speak [MASK].";
const NUM_GUESSES = 8;

function openMasks(info) {
  const { text: mask, takes_space: takesSpace } = info.mask;
  const [field, undo] = [byId("masks-text"), byId("masks-undo")];
  const before = [];
  field.value = MASKS_EXAMPLE.replaceAll("[MASK]", mask);
  for (const each of document.querySelectorAll(".mask")) each.textContent = mask;

  // Return the parts of the text between masks; the mask of some tokenizers includes the space before it.
  function partsOf(text) {
    const parts = text.split(mask);
    return parts.map((part, n) => (takesSpace && n < parts.length - 1 ? part.trimEnd() : part));
  }

  function fill(number, word) {
    before.push(field.value);
    const whole = field.value.split(mask);
    const joined = partsOf(field.value)[number] + word + whole[number + 1];
    field.value = [...whole.slice(0, number), joined, ...whole.slice(number + 2)].join(mask);
    undo.hidden = false;
    panel.start().then(() => (panel.result.querySelector("button") ?? undo).focus());
  }

  function sentence(parts, guesses) {
    const line = make("p", { className: "sentence", dir: "auto" }, parts[0]);
    parts.slice(1).forEach((part, n) => {
      const best = guesses[n]?.[0].token_str ?? mask;
      // The space that a guess begins with is shown before its mark; a guess of spaces alone as visible signs.
      const space = best.trim() ? best.slice(0, best.length - best.trimStart().length) : "";
      line.append(space, make("mark", {}, best.trim() || visible(best)), part);
    });
    return line;
  }

  function guessed(guesses, number) {
    const rows = guesses.map((guess) => {
      const label = make("span", { dir: "auto" }, visible(guess.token_str));
      const share = make("span", { className: "number" }, percent(guess.score));
      const row = make("button", { type: "button", className: "score" }, label, bar(guess.score), share);
      row.setAttribute("aria-label", `Fill mask ${number + 1} with ${guess.token_str}, ${percent(guess.score)}`);
      row.addEventListener("click", () => fill(number, guess.token_str));
      return make("li", {}, row);
    });
    return make("div", {}, make("h3", {}, `Mask ${number + 1}`), make("ul", { className: "scores" }, ...rows));
  }

  const panel = new Panel("masks", async (ask) => {
    const text = field.value;
    if (before.length && !text.includes(mask)) {
      panel.result.replaceChildren(make("p", { className: "sentence", dir: "auto" }, text));
      return "All masks are filled.";
    }
    const answer = await ask("fill-mask", { inputs: text, top_k: NUM_GUESSES });
    // The guesses for a single mask have no list around them.
    const found = Array.isArray(answer[0]) ? answer : [answer];
    panel.result.replaceChildren(
      sentence(partsOf(text), found),
      make("div", { className: "masks" }, ...found.map(guessed)),
    );
    return `The likeliest tokens for ${plural(found.length, "mask")}. Choose one to fill it in.`;
  });
  // Typing clears the history of filled masks.
  field.addEventListener("input", () => { before.length = 0; undo.hidden = true; });
  byId("masks-insert").addEventListener("click", () => {
    field.setRangeText(mask, field.selectionStart, field.selectionEnd, "end");
    field.focus();
    panel.changed();
  });
  undo.addEventListener("click", () => {
    field.value = before.pop();
    undo.hidden = !before.length;
    field.focus();
    panel.start();
  });
  return panel;
}

// ---- Search ----

const NUM_RANKS = 10;
const HOW_SCORED = {
  probability: "probabilities that a passage answers",
  cosine: "cosines of vectors, at most 1; bars run from the lowest here to the highest",
  score: "scores of the model's head; bars run from the lowest here to the highest",
  MaxSim: "sums over the question's tokens; bars run from the lowest here to the highest",
};

const within = (value, lowest, highest) => (highest > lowest ? (value - lowest) / (highest - lowest) : 1);

// Return the paragraphs of a text, or its lines if it has no empty line.
function passagesOf(text) {
  const bare = (part) => part.replace(/^\s*\n/, "").trimEnd();
  const cut = (where) => text.split(where).map(bare).filter((part) => part.trim());
  const paragraphs = cut(/\n[^\S\n]*\n/);
  return paragraphs.length > 1 ? paragraphs : cut(/\n/);
}

function openSearch(info) {
  const scored = info.scores;

  function choose(place, buttons, rows, number) {
    buttons.forEach((button, n) => button.setAttribute("aria-pressed", String(n === number)));
    [...place.children].forEach((passage, n) => passage.classList.toggle("is-chosen", n === rows[number].index));
    const chosen = place.children[rows[number].index];
    const top = chosen.offsetTop - (place.clientHeight - chosen.offsetHeight) / 2;
    place.scrollTo({ top, behavior: isCalm.matches ? "auto" : "smooth" });
  }

  const panel = new Panel("search", async (ask) => {
    const passages = passagesOf(byId("search-text").value);
    if (!passages.length) throw new Error("text: found none, expected at least one passage");
    const rows = await ask("rerank", { query: byId("search-query").value, texts: passages });
    const [highest, lowest] = [rows[0].score, rows[rows.length - 1].score];
    const share = (score) => (scored === "probability" ? score : within(score, lowest, highest));
    const place = make("div", { className: "place", tabIndex: 0, role: "region", "aria-label": "The text" });
    place.append(...passages.map((passage) => make("p", { dir: "auto" }, passage)));
    const shown = rows.slice(0, NUM_RANKS);
    const buttons = shown.map((row, n) => {
      const score = make("span", { className: "number" }, row.score.toFixed(3));
      const words = make("span", { className: "words", dir: "auto" }, passages[row.index]);
      const button = make("button", { type: "button", "aria-pressed": "false" }, score, words, bar(share(row.score)));
      button.addEventListener("click", () => choose(place, buttons, shown, n));
      return button;
    });
    panel.result.replaceChildren(
      make("ol", { className: "ranks" }, ...buttons.map((button) => make("li", {}, button))),
      make("h3", {}, "In the text"), place,
    );
    choose(place, buttons, shown, 0);
    const all = plural(rows.length, "passage");
    const how = shown.length < rows.length ? `The best ${shown.length} of ${all}` : `${all}, the best first`;
    return `${how}. Scores are ${HOW_SCORED[scored]}.`;
  });
  return panel;
}

// ---- Compare ----

const MOST_SENTENCES = 16;

function openCompare(info) {
  function mostAlike(matrix, pairs) {
    const value = ([row, column]) => matrix[row][column];
    return pairs.reduce((best, pair) => (value(pair) > value(best) ? pair : best));
  }

  function table(sentences, matrix, pairs) {
    const values = pairs.map(([row, column]) => matrix[row][column]);
    const [lowest, highest] = [Math.min(...values), Math.max(...values)];
    const most = mostAlike(matrix, pairs);

    function cell(value, row, column) {
      const isSelf = row === column;
      const found = make("td", { className: isSelf ? "is-self" : "" }, value.toFixed(2));
      found.style.setProperty("--share", within(value, lowest, highest));
      found.classList.toggle("is-most", !isSelf && most.includes(row) && most.includes(column));
      return found;
    }

    const head = sentences.map((sentence, n) => make("th", { scope: "col", title: sentence }, String(n + 1)));
    const rows = sentences.map((sentence, row) => {
      const name = make("th", { scope: "row", dir: "auto" }, make("b", {}, String(row + 1)), ` ${sentence}`);
      return make("tr", {}, name, ...matrix[row].map((value, column) => cell(value, row, column)));
    });
    const corner = make("td", { className: "is-self" });
    return make("table", {}, make("thead", {}, make("tr", {}, corner, ...head)), make("tbody", {}, ...rows));
  }

  const panel = new Panel("compare", async (ask) => {
    const sentences = byId("compare-text").value.split("\n").map((line) => line.trim()).filter(Boolean);
    if (sentences.length < 2 || sentences.length > MOST_SENTENCES) {
      throw new Error(`sentences: found ${sentences.length}, expected 2 to ${MOST_SENTENCES}`);
    }
    const matrix = await Promise.all(
      sentences.map((source) => ask("similarity", { inputs: { source_sentence: source, sentences } })),
    );
    const numbers = [...sentences.keys()];
    const pairs = numbers.flatMap((row) => numbers.filter((column) => column !== row).map((column) => [row, column]));
    const region = make("div", { className: "scroll", tabIndex: 0, role: "region" });
    region.setAttribute("aria-label", "How alike the sentences are");
    region.append(table(sentences, matrix, pairs));
    panel.result.replaceChildren(region);
    const [row, column] = mostAlike(matrix, pairs);
    const names = `${Math.min(row, column) + 1} and ${Math.max(row, column) + 1}`;
    const score = `${info.scores} ${matrix[row][column].toFixed(2)}`;
    return `Most alike: ${names}, ${score}. The stronger the colour, the more alike.`;
  });
  return panel;
}

// ---- Classify ----

const LABELS_EXAMPLE = "A quiet film with a surprising end. I would go and see it again tomorrow.";
const SPANS_EXAMPLE = "Marie Curie left Warsaw for Paris in 1891 🚂 and studied at the Sorbonne.";
const NUM_LABELS = 12;

function openClassify(info) {
  const names = Object.values(info.model_type.classifier.id2label);
  const isTagger = info.labels === "spans";
  const isScore = info.scores === "score";
  const [text, second] = [byId("classify-text"), byId("classify-pair")];
  text.value = isTagger ? SPANS_EXAMPLE : LABELS_EXAMPLE;
  byId("classify-second").hidden = isTagger;
  byId("classify-about").textContent = {
    score: "The model gives a text a score.",
    spans: "The model marks and labels spans of a text.",
    several: `The model gives each of ${plural(names.length, "label")} a probability.`,
    one: `The model gives ${plural(names.length, "label")} probabilities that add up to 100 %.`,
  }[isScore ? "score" : info.labels];

  function tagged(spans) {
    const characters = Array.from(text.value);
    const line = make("p", { className: "tagged", dir: "auto" });
    let behind = 0;
    for (const { start, end, label, score } of spans.toSorted((one, other) => one.start - other.start)) {
      const words = characters.slice(start, end).join("");
      const name = make("small", {}, `${label} ${percent(score)}`);
      line.append(characters.slice(behind, start).join(""), make("mark", {}, words, name));
      behind = end;
    }
    line.append(characters.slice(behind).join(""));
    return line;
  }

  function labelled(rows) {
    // A score has no bounds for a bar.
    if (isScore) return make("p", { className: "sentence" }, rows[0].score.toFixed(3));
    const items = rows.slice(0, NUM_LABELS).map(({ label, score }) => {
      const number = make("span", { className: "number" }, percent(score));
      return make("li", { className: "score" }, make("span", { dir: "auto", title: label }, label), bar(score), number);
    });
    return make("ul", { className: "scores" }, ...items);
  }

  const panel = new Panel("classify", async (ask) => {
    const inputs = !isTagger && second.value.trim() ? [text.value, second.value] : text.value;
    const found = await ask("predict", { inputs });
    panel.result.replaceChildren(isTagger ? tagged(found) : labelled(found));
    if (isTagger) return found.length ? `${plural(found.length, "span")} found.` : "No span found.";
    const shown = found.length > NUM_LABELS ? ` The first ${NUM_LABELS} of ${found.length} labels.` : "";
    return isScore ? "One score." : `Most likely ${found[0].label}, ${percent(found[0].score)}.${shown}`;
  });
  return panel;
}

// ---- Tokens and their attention ----

const MOST_TOKENS = 4096;

// Return a text with visible signs for whitespace and invisible characters.
function visible(text) {
  const characters = Array.from(text);
  return characters.map((character) => {
    const sign = { " ": "·", "\n": "↵", "\t": "⇥" }[character];
    // A zero-width joiner between other characters joins emoji.
    const isJoining = character === "\u200d" && characters.length > 1;
    if (sign || isJoining || !/[\p{C}\p{Z}]/u.test(character)) return sign ?? character;
    return `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  }).join("");
}

// Return the range of tokens that a token attends to in a layer, and how the range grows in the next layers until it
// covers the text: [{layer, isGlobal, first, last}].
function attendedRanges({ layers, global_every: every, window }, layer, token, count) {
  const rows = [];
  const side = window / 2;
  let [first, last] = [token, token];
  do {
    const at = layer + rows.length;
    const isGlobal = at % every === 0;
    [first, last] = isGlobal ? [0, count - 1] : [Math.max(0, first - side), Math.min(count - 1, last + side)];
    rows.push({ layer: at, isGlobal, first, last });
  } while (rows.length + layer < layers && (first > 0 || last < count - 1));
  return rows;
}

// The second layer is the first local one.
const firstLayer = ({ layers }) => Math.min(1, layers - 1);

function layersOf(attention, choose) {
  const cells = Array.from({ length: attention.layers }, (_, layer) => {
    const kind = layer % attention.global_every === 0 ? "global" : "local";
    const radio = make("input", { type: "radio", name: "layer", checked: layer === firstLayer(attention) });
    radio.setAttribute("aria-label", `Layer ${layer + 1}, ${kind}`);
    radio.addEventListener("change", () => choose(layer));
    const number = make("span", { "aria-hidden": "true" }, String(layer + 1));
    return make("label", { className: `is-${kind}` }, radio, number);
  });
  const note = make("span", { className: "note" }, "global layers are framed");
  return make("fieldset", {}, make("legend", {}, "Layer ", note), make("div", { className: "layers" }, ...cells));
}

class TokenList {
  // Tokens as a list box: one is chosen by mouse or arrow keys, and passed to `onChoice`.
  constructor(text, tokens, onChoice) {
    const characters = Array.from(text);
    this.tokens = tokens;
    const textOf = ({ special, text: name, start, stop }) => (special ? name : characters.slice(start, stop).join(""));
    this.texts = tokens.map(textOf);
    this.onChoice = onChoice;
    this.details = make("p", { className: "token-details" });
    this.chips = tokens.slice(0, MOST_TOKENS).map((token, n) => this.chip(token, n));
    this.box = make("div", { className: "token-list", role: "listbox", "aria-label": "Tokens" }, ...this.chips);
    this.box.addEventListener("keydown", (event) => this.moved(event));
    this.box.addEventListener("click", (event) => this.pointed(event, (n) => this.choose(n)));
    this.box.addEventListener("pointerover", (event) => this.pointed(event, (n) => this.describe(n)));
    this.box.addEventListener("pointerleave", () => this.describe(this.chosen));
  }

  chip(token, number) {
    const text = this.texts[number];
    const chip = make("span", { className: "token", role: "option", tabIndex: -1 }, visible(text));
    chip.classList.toggle("is-special", token.special);
    chip.setAttribute("aria-selected", "false");
    chip.setAttribute("aria-label", `${text.trim() || visible(text)}, token ${number + 1}, id ${token.id}`);
    return chip;
  }

  pointed(event, then) {
    const number = this.chips.indexOf(event.target.closest?.(".token"));
    if (number >= 0) then(number);
  }

  moved(event) {
    const end = this.chips.length - 1;
    const steps = { ArrowLeft: this.chosen - 1, ArrowRight: this.chosen + 1, Home: 0, End: end };
    const to = steps[event.key] ?? this.nextLine({ ArrowUp: -1, ArrowDown: 1 }[event.key]);
    if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.choose(Math.min(end, Math.max(0, to)));
    this.chips[this.chosen].focus();
  }

  // Return the token above or below the chosen one.
  nextLine(step) {
    if (step === undefined) return undefined;
    const { offsetTop: top, offsetLeft: left } = this.chips[this.chosen];
    let to = this.chosen;
    while (this.chips[to] && this.chips[to].offsetTop === top) to += step;
    if (!this.chips[to]) return this.chosen;
    const line = this.chips[to].offsetTop;
    const distance = (n) => Math.abs(this.chips[n].offsetLeft - left);
    while (this.chips[to + step]?.offsetTop === line && distance(to + step) <= distance(to)) to += step;
    return to;
  }

  choose(number) {
    for (const [n, isChosen] of [[this.chosen ?? number, false], [number, true]]) {
      this.chips[n].setAttribute("aria-selected", String(isChosen));
      this.chips[n].tabIndex = isChosen ? 0 : -1;
    }
    this.chosen = number;
    this.describe(number);
    this.onChoice(number);
  }

  describe(number) {
    const token = this.tokens[number];
    const words = [`Token ${counted(number + 1)} of ${counted(this.tokens.length)}`, `id ${token.id}`];
    if (token.special) words.push(`special: ${token.text}`);
    else if (token.stop - token.start === 1) words.push(`character ${counted(token.start + 1)}${this.partOf(number)}`);
    else words.push(`characters ${counted(token.start + 1)} to ${counted(token.stop)}`);
    this.details.textContent = words.join(" · ");
  }

  // Several tokens may be bytes of one character; all have its offsets.
  partOf(number) {
    const { start } = this.tokens[number];
    const isSame = (n) => this.tokens[n]?.special === false && this.tokens[n].start === start;
    let [first, behind] = [number, number + 1];
    while (isSame(first - 1)) first--;
    while (isSame(behind)) behind++;
    return behind - first > 1 ? `, part ${number - first + 1} of ${behind - first}` : "";
  }

  center() {
    const chip = this.chips[this.chosen];
    if (chip) this.box.scrollTop = chip.offsetTop - this.box.clientHeight / 2;
  }

  see(first, last) {
    this.chips.forEach((chip, n) => chip.classList.toggle("is-seen", n >= first && n <= last));
  }
}

const ABOUT_RANGES = "The tokens that information from this token has reached after each layer, from the chosen layer on, "
  + "until it has reached all.";

class Attention {
  constructor(attention, count) {
    [this.attention, this.count, this.layer] = [attention, count, firstLayer(attention)];
    this.line = make("p", { className: "window", role: "status" });
    this.rows = make("ol", { className: "ranges" });
    const layers = layersOf(attention, (layer) => { this.layer = layer; this.show(this.tokenList.chosen); });
    this.parts = [layers, this.line, this.rows, make("p", { className: "note" }, ABOUT_RANGES)];
  }

  show(token) {
    const rows = attendedRanges(this.attention, this.layer, token, this.count);
    const { first, last, isGlobal } = rows[0];
    const side = this.attention.window / 2;
    const why = isGlobal ? "global: each token attends to all" : `local: a token attends to itself and ${side} tokens on each side`;
    const number = make("strong", {}, counted(last - first + 1));
    const note = make("span", { className: "note" }, ` Layer ${this.layer + 1} is ${why}.`);
    this.line.replaceChildren(`Token ${counted(token + 1)} attends to `, number, ` of ${plural(this.count, "token")}.`, note);
    this.tokenList.see(first, last);
    this.rows.replaceChildren(...rows.map((row) => this.row(row, token)));
  }

  row({ layer, isGlobal, first, last }, token) {
    const [reached, marker] = [make("i"), make("b")];
    const share = (number) => `${(100 * number) / this.count}%`;
    [reached.style.left, reached.style.width] = [share(first), share(last - first + 1)];
    marker.style.left = share(token + 0.5);
    const name = make("span", {}, `Layer ${layer + 1}, ${isGlobal ? "global" : "local"}`);
    const track = make("span", { className: "track", "aria-hidden": "true" }, reached, marker);
    return make("li", {}, name, track, make("span", { className: "number" }, plural(last - first + 1, "token")));
  }
}

function lengthMeter(count, most) {
  const inner = make("i");
  inner.style.width = `${Math.min(100, (100 * count) / most)}%`;
  return make("div", { className: count > most ? "length-meter is-over" : "length-meter", "aria-hidden": "true" }, inner);
}

function openTokens(info) {
  const most = info.max_input_length;
  const panel = new Panel("tokens", async (ask) => {
    const text = byId("tokens-text").value;
    const [tokens] = await ask("tokenize", { inputs: text });
    const window = info.attention && tokens.length ? new Attention(info.attention, tokens.length) : undefined;
    const list = new TokenList(text, tokens, (number) => window?.show(number));
    if (window) window.tokenList = list;
    panel.result.replaceChildren(lengthMeter(tokens.length, most), list.box, list.details, ...(window?.parts ?? []));
    if (tokens.length) list.choose(Math.floor(list.chips.length / 2));
    list.center();
    const over = tokens.length > most ? `, ${counted(tokens.length - most)} too many` : "";
    const drawn = tokens.length > MOST_TOKENS ? ` The first ${counted(MOST_TOKENS)} are drawn.` : "";
    return `${plural(tokens.length, "token")} of at most ${counted(most)}${over}.${drawn}`;
  });
  return panel;
}

// ---- The page ----

const OPENERS = {
  masks: openMasks, search: openSearch, compare: openCompare, classify: openClassify, tokens: openTokens,
};
const panels = new Map();

function describe(info) {
  byId("model").textContent = info.model_id;
  document.title = `${info.model_id} · modernbert`;
  const facts = [["Precision", info.model_dtype], ["Longest text", plural(info.max_input_length, "token")]];
  if (info.attention) {
    const numGlobal = Math.ceil(info.attention.layers / info.attention.global_every);
    facts.push(["Layers", `${info.attention.layers}, of which ${numGlobal} global`]);
  }
  facts.push(["Purpose", purposeOf(info)]);
  byId("facts").replaceChildren(...listed(facts));
}

function purposeOf({ answers, scores, labels: kindOfLabels, model_type: kind }) {
  if (kind.reranker) return "ranking passages";
  if (kind.classifier) {
    const labels = plural(Object.keys(kind.classifier.id2label).length, "label");
    if (scores === "score") return "giving a text a score";
    return { spans: "marking spans", several: `any number of ${labels}`, one: `one of ${labels}` }[kindOfLabels];
  }
  const vectors = scores === "MaxSim" ? "a vector of each token" : "vectors of texts";
  return answers.includes("fill-mask") ? `filling masks, ${vectors}` : vectors;
}

function addTabs(names) {
  byId("tabs").append(...names.map((name) => {
    const tab = make("button", { type: "button", role: "tab", id: `tab-${name}` }, byId(name).dataset.name);
    tab.setAttribute("aria-controls", name);
    tab.addEventListener("click", () => select(name));
    return tab;
  }));
  byId("tabs").addEventListener("keydown", (event) => {
    const at = names.findIndex((name) => event.target.id === `tab-${name}`);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: names.length - 1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const name = names[(to + names.length) % names.length];
    select(name);
    byId(`tab-${name}`).focus();
  });
}

function select(name) {
  for (const tab of byId("tabs").children) {
    const isChosen = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", String(isChosen));
    tab.tabIndex = isChosen ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
  history.replaceState(null, "", `#${name}`);
  const panel = panels.get(name);
  // Each panel sends its example when it is first opened.
  if (!panel.seen) panel.start();
  panel.seen = true;
}

async function start() {
  byId("trouble").textContent = "";
  let info;
  try {
    info = (await ask("info")).answer;
  } catch (error) {
    // A visitor without a key has made no error.
    const isFirst = !byId("key-form").hidden && !storage.key;
    byId("trouble").textContent = isFirst ? "" : error.message;
    if (!byId("key-form").hidden) byId("key").focus();
    return;
  }
  byId("key-form").hidden = true;
  byId("key-used").hidden = !storage.key;
  // A link sends no key.
  byId("docs").hidden = Boolean(storage.key);
  if (panels.size) return;
  describe(info);
  const routes = [...info.answers, "tokenize"];
  const names = Object.keys(OPENERS).filter((name) => routes.includes(byId(name).dataset.route));
  for (const name of names) panels.set(name, OPENERS[name](info));
  addTabs(names);
  select(names.includes(location.hash.slice(1)) ? location.hash.slice(1) : names[0]);
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  storage.keep(byId("key").value.trim());
  byId("key").value = "";
  start();
});
byId("key-forget").addEventListener("click", () => {
  storage.keep("");
  location.reload();
});
storage.load();
start();

"use strict";

// The address holds the whole state: `#key` is one image, `#?q=dog&sort=weakest&page=2` a list.
// Captions, clip texts and names come from strangers: they reach the page as text only, never as markup.

const { entries, pages, page_size: PAGE_SIZE } = GALLERY;
const INDEX = entries.map(([key, split, cosine, text], position) => ({
  position, key, split, cosine, text: fold(text),
}));
const POSITIONS = new Map(INDEX.map((entry) => [entry.key, entry.position]));
const SORTS = {
  weakest: (a, b) => a.cosine - b.cosine || a.position - b.position,
  strongest: (a, b) => b.cosine - a.cosine || a.position - b.position,
};

const find = (name) => document.querySelector(`[data-${name}]`);
const tools = find("tools");
let expanded = false;
let rendering = 0;
let shownPage = 0;

/* Text */

function fold(text) {
  return text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();
}

function count(number, noun, nouns) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : nouns}`;
}

function decimal(number, digits, { signed = false, unit = "" } = {}) {
  const text = Number.isFinite(number) ? Math.abs(number).toFixed(digits) : "∞";
  const zero = Number(text) === 0;
  const sign = number < 0 && !zero ? "−" : signed && !zero ? "+" : "";
  return unit ? `${sign}${text}\u202f${unit}` : sign + text;
}

/* Elements */

function make(tag, { text, ...attributes } = {}, ...children) {
  const svg = ["svg", "rect", "title"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// Only http and https addresses become links; what surrounds them stays text.
function linked(text) {
  return text.split(/(https?:\/\/[^\s<>"'|\\^`{}]+)/i).flatMap((part, position) => {
    if (position % 2 === 0) return part ? [part] : [];
    const url = part.replace(/[).,;:!?\]]+$/, "");
    const link = make("a", { href: url, rel: "noopener noreferrer", target: "_blank", text: url });
    return [link, part.slice(url.length)];
  });
}

function definition(name, ...value) {
  return make("div", {}, make("dt", { text: name }), make("dd", {}, ...value));
}

/* Header */

function showHeader() {
  const { run, images, scenes, clips, limited_scenes: limited, cut_scenes: cut, weak_sounds: weak, sounds } = GALLERY;
  document.title = `${run} · sonify gallery`;
  find("run").textContent = run;
  const all = images === INDEX.length;
  const shown = all ? "" : `${INDEX.length.toLocaleString("en")} of `;
  find("lead").textContent = `${shown}${count(images, "image", "images")}, and what could be heard in them`;
  find("totals").append(
    definition("scenes", scenes.toLocaleString("en")),
    definition("clips used", clips.toLocaleString("en")),
    definition("of scenes limited to the peak", decimal((100 * limited) / scenes, 1, { unit: "%" })),
    ...(cut ? [definition("of scenes cut off at full scale", decimal((100 * cut) / scenes, 1, { unit: "%" }))] : []),
    ...(weak ? [definition("of sounds match weakly", make("a", { href: address({ q: "weak match" }), text: decimal((100 * weak) / sounds, 1, { unit: "%" }) }))] : []),
  );
  find("figures").append(...GALLERY.histograms.map(histogram));
  find("chips").append(...GALLERY.concepts.map((concept) => make("a", { href: address({ q: concept }), text: concept })));
  tools.split.parentElement.hidden = new Set(INDEX.map((entry) => entry.split)).size < 2;
}

function histogram({ title, first, step, unit, counts }) {
  const highest = Math.max(...counts);
  const whole = step >= 1;
  const label = (bin) => decimal(bin * step, whole ? 0 : 2, { signed: unit === "dB" });
  const svg = make("svg", { viewBox: `0 0 ${counts.length} 40`, preserveAspectRatio: "none", "aria-hidden": "true" });
  counts.forEach((number, n) => {
    const height = number ? Math.max(1.2, (40 * number) / highest) : 0;
    const bin = step === 1 ? label(first + n) : `${label(first + n)} to ${label(first + n + 1)}`;
    svg.append(make("rect", { x: n + 0.08, y: 40 - height, width: 0.84, height },
      make("title", { text: `${bin}${unit && ` ${unit}`}: ${number.toLocaleString("en")}` })));
  });
  const last = first + counts.length - (step === 1 ? 1 : 0);
  const ends = [label(first), label(last)].map((end) => (unit ? `${end}\u202f${unit}` : end));
  const axis = make("span", { class: "axis" }, make("span", { text: ends[0] }), make("span", { text: ends[1] }));
  return make("figure", {}, make("figcaption", { text: title }), svg, axis);
}

/* State */

function readState() {
  const hash = location.hash.slice(1);
  if (hash && !hash.startsWith("?")) {
    const position = POSITIONS.get(hash);
    const page = position === undefined ? 1 : Math.floor(position / PAGE_SIZE) + 1;
    return { q: "", split: "", sort: "", page, key: hash };
  }
  const values = new URLSearchParams(hash.slice(1));
  const page = Math.max(1, Math.trunc(Number(values.get("page"))) || 1);
  return { q: values.get("q") || "", split: values.get("split") || "", sort: values.get("sort") || "", page, key: "" };
}

function address({ q = "", split = "", sort = "", page = 1 }) {
  const values = Object.entries({ q, split, sort, page: page > 1 ? page : "" }).filter(([, value]) => value);
  return `#?${new URLSearchParams(values)}`;
}

function select({ q, split, sort }) {
  const terms = fold(q).split(/\s+/).filter(Boolean);
  const matches = INDEX.filter(
    (entry) => (!split || entry.split === split) && terms.every((term) => entry.text.includes(term)),
  );
  return SORTS[sort] ? matches.sort(SORTS[sort]) : matches;
}

/* Details are loaded when they are first shown. */

const loading = new Map();

function load(page) {
  if (pages[page]) return Promise.resolve();
  if (!loading.has(page)) {
    const name = `data/page-${String(page).padStart(4, "0")}.js`;
    loading.set(page, new Promise((resolve, reject) => {
      const script = make("script", { src: name });
      script.onload = resolve;
      script.onerror = () => { loading.delete(page); reject(new Error(`${name} is missing: build the gallery again.`)); };
      document.head.append(script);
    }));
  }
  return loading.get(page);
}

async function details(shown) {
  await Promise.all([...new Set(shown.map((entry) => Math.floor(entry.position / PAGE_SIZE) + 1))].map(load));
  return shown.map(({ position }) => pages[Math.floor(position / PAGE_SIZE) + 1][position % PAGE_SIZE]);
}

/* Page */

async function render() {
  const turn = ++rendering;
  const state = readState();
  const matches = select(state);
  const last = Math.max(1, Math.ceil(matches.length / PAGE_SIZE));
  const page = Math.min(state.page, last);
  const shown = matches.slice((page - 1) * PAGE_SIZE, page * PAGE_SIZE);
  let pictures;
  try {
    pictures = await details(shown);
  } catch (error) {
    if (turn === rendering) find("status").textContent = error.message;
    return;
  }
  if (turn !== rendering) return;
  if (document.activeElement !== tools.q) tools.q.value = state.q;
  tools.split.value = state.split;
  tools.sort.value = state.sort;
  for (const chip of find("chips").children) chip.toggleAttribute("aria-current", chip.textContent === state.q);
  find("cards").replaceChildren(...pictures.map(card));
  find("pager").replaceChildren(...pager(state, page, last));
  find("status").replaceChildren(...status(state, matches.length, page));
  if (shownPage && shownPage !== page) find("status").scrollIntoView();
  shownPage = page;
  arrive(state.key);
}

function status({ q, split, key }, number, page) {
  if (key && !POSITIONS.has(key)) return [`The image ${key} is not in this gallery. `, make("a", { href: "#?", text: "Show all" })];
  if (number === 0) return [`Nothing found for “${q}”. `, make("a", { href: "#?", text: "Show all" })];
  const first = (page - 1) * PAGE_SIZE + 1;
  const range = `${first.toLocaleString("en")}–${Math.min(number, page * PAGE_SIZE).toLocaleString("en")}`;
  const total = q || split ? count(number, "match", "matches") : count(number, "image", "images");
  return [`${range} of ${total}`];
}

function arrive(key) {
  const target = key && document.getElementById(key);
  if (!target) return;
  target.classList.add("target");
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

function pager(state, page, last) {
  if (last === 1) return [];
  const near = [1, page - 1, page, page + 1, last].filter((n) => n >= 1 && n <= last);
  const numbers = [...new Set(near)].sort((a, b) => a - b);
  const links = numbers.flatMap((number, n) => {
    const gap = n > 0 && number - numbers[n - 1] > 1 ? [make("span", { class: "gap", text: "…" })] : [];
    const current = number === page ? { "aria-current": "page" } : {};
    const link = make("a", { href: address({ ...state, page: number }), "aria-label": `Page ${number}`, ...current, text: number.toLocaleString("en") });
    return [...gap, link];
  });
  const step = (name, number, rel) => number < 1 || number > last
    ? make("span", { class: "step", "aria-hidden": "true", text: name })
    : make("a", { class: "step", href: address({ ...state, page: number }), rel, text: name });
  return [step("Previous", page - 1, "prev"), make("span", { class: "numbers" }, ...links), step("Next", page + 1, "next")];
}

/* Cards */

function card(picture) {
  const { key, path, split, caption, preview, width, height, scenes } = picture;
  const title = caption || path;
  const image = make("img", { src: preview, width, height, alt: title, loading: "lazy", decoding: "async" });
  const meta = make("p", { class: "meta" },
    make("a", { class: "path", href: `#${key}`, title: "Link to this image", text: path }),
    make("span", { class: `split ${split === "validation" ? "held-out" : ""}`, text: split }));
  return make("article", { class: "card", id: key, tabindex: "-1", "aria-label": title },
    make("div", { class: "picture" }, image),
    make("div", { class: "body" },
      make("h2", { dir: "auto", text: title }), meta,
      make("div", { class: "scenes" }, ...scenes.map((one) => scene(one, title, caption)))));
}

function scene(one, title, caption) {
  const levels = [
    decimal(one.duration_sec, 1, { unit: "s" }),
    `peak ${decimal(one.peak_dbfs, 1, { unit: "dBFS" })}`,
    `mix gain ${decimal(one.mix_gain_db, 1, { signed: true, unit: "dB" })}`,
  ];
  const own = one.caption && one.caption !== caption ? [make("p", { class: "own", dir: "auto", text: one.caption })] : [];
  return make("section", { class: "scene" },
    make("header", {}, make("h3", { text: one.scene }), make("p", { text: levels.join(" · ") })),
    ...own, player(one, title),
    make("ul", { class: "sources" }, ...one.sources.map(source)), ...unheard(one.refused || []));
}

// What was named in the image and is not heard, and why.
function unheard(refused) {
  if (!refused.length) return [];
  const items = refused.map(({ concept, description, why, near, cosine, heard }) => make("li", { dir: "auto" },
    make("b", { text: concept }), description ? ` ${description}` : "", make("span", { class: "why", text: why }),
    near ? make("span", { class: "near" }, "nearest: ", make("q", { text: near }), ` ${decimal(cosine, 2)}`, heard ? `, in which was heard: ${heard}` : "") : ""));
  return [make("div", { class: "unheard" }, make("h4", { text: "Named, not heard" }), make("ul", {}, ...items))];
}

function player({ scene, audio: file, spectrogram, duration_sec: duration, sample_rate_hz: rate }, title) {
  const audio = make("audio", { controls: "", preload: "none", src: file, "aria-label": `${scene}: sound of ${title}` });
  const picture = make("img", { src: spectrogram, alt: "", loading: "lazy", decoding: "async" });
  const top = make("span", { class: "top", text: decimal(rate / 2000, rate % 2000 ? 1 : 0, { unit: "kHz" }) });
  // A pointer's shortcut only: the audio controls below do the same from the keyboard.
  const screen = make("div", { class: "spectrogram", title: "Play from here" }, picture, make("i", { class: "head" }), top);
  screen.addEventListener("click", (event) => {
    const box = screen.getBoundingClientRect();
    audio.currentTime = (duration * (event.clientX - box.left)) / box.width;
    audio.play();
  });
  const follow = () => {
    screen.style.setProperty("--at", `${Math.min(100, (100 * audio.currentTime) / duration)}%`);
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    screen.classList.add("heard");
    follow();
  });
  audio.addEventListener("seeked", follow);
  return make("div", { class: "player" }, screen, audio);
}

function source(one) {
  const meter = make("span", { class: "meter", "aria-hidden": "true" });
  meter.style.setProperty("--share", Math.max(0, Math.min(1, one.cosine)));
  const summary = make("summary", {},
    make("span", { class: "heard-as", dir: "auto" }, make("b", { text: one.concept }), one.description ? ` ${one.description}` : ""),
    make("span", { class: "match", title: "Cosine of concept and clip" }, meter, decimal(one.cosine, 2)),
    ...(one.marks || []).map((text) => make("span", { class: "mark", text })),
    make("span", { class: "clip", dir: "auto" }, make("q", { text: one.text || one.clip }), [" ", one.corpus, one.licence].join(" · ")));
  const facts = make("dl", {},
    definition("Cosine", decimal(one.cosine, 3)),
    definition("Score", decimal(one.score, 3)),
    definition("Threshold", decimal(one.threshold, 3)),
    definition("Candidates", one.num_candidates.toLocaleString("en")),
    definition("Clip loudness", decimal(one.loudness_lufs, 1, { unit: "LUFS" })),
    definition("Target", decimal(one.target_lufs, 1, { unit: "LUFS" })),
    definition("Gain", decimal(one.gain_db, 1, { signed: true, unit: "dB" })),
    definition("Corpus", one.corpus),
    ...(one.limit ? [definition("Limit", decimal(one.limit, 3))] : []),
    ...(one.heard_by ? [definition("Support", decimal(one.support, 2)), definition("Purity", decimal(one.purity, 2)), definition("Speech", decimal(one.speech, 2))] : []));
  const wide = make("dl", { class: "wide" },
    ...(one.heard_by ? [definition(`Heard by ${one.heard_by}`, one.heard || "nothing that it can name")] : []),
    definition("Clip", make("code", { text: one.clip })),
    definition("Licence", ...linked(one.licence || "not stated")),
    definition("Attribution", ...linked(one.attribution || "not stated")));
  return make("li", {}, make("details", expanded ? { open: "" } : {}, summary, facts, wide));
}

/* Controls */

let typing;

function goToSearch() {
  location.replace(address({ q: tools.q.value.trim(), split: tools.split.value, sort: tools.sort.value }));
}

tools.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(goToSearch, event.target === tools.q ? 150 : 0);
});
tools.addEventListener("submit", (event) => {
  event.preventDefault();
  goToSearch();
});
find("expand").addEventListener("click", (event) => {
  expanded = !expanded;
  event.currentTarget.setAttribute("aria-pressed", expanded);
  for (const element of document.querySelectorAll(".card details")) element.open = expanded;
});
document.addEventListener("keydown", (event) => {
  const writing = event.target.closest("input, select, textarea");
  if (event.key !== "/" || writing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  tools.q.focus();
  tools.q.select();
});
window.addEventListener("hashchange", render);

showHeader();
render();

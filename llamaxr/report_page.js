// What report.html does. All that comes from data becomes a text node or an attribute's value, never HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const KINDS = { "right": "right", "wrong side": "side", "missed": "missed", "invented": "invented" }; // CSS classes
const QUESTIONS = [["correct", ["yes", "partly", "no"]], ["complete", ["yes", "partly", "no"]],
                   ["would sign", ["yes", "no"]]];
const KEPT = "llamaxr review " + data.key;

// rows: places in data.studies; at: the row shown; heat: the finding whose map lies on the films
const state = { blind: false, rows: [], at: 0, heat: null };
// by a study's place in the review; opened: seen with its marks
let review = { reader: "", answers: {}, opened: {} };

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick" || name === "oninput") node[name] = value;
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// Tables

const number = (x) => (x === null ? "–" : Number.isInteger(x) ? String(x) : x.toFixed(3));

function cell([value, low, high], whole = false) {
  const shown = whole ? number(value) : value === null ? "–" : value.toFixed(3);
  return low === undefined ? el("td", {}, shown)
    : el("td", {}, shown, el("small", {}, `${low.toFixed(3)}–${high.toFixed(3)}`));
}

function table(title, heads, rows) {
  return el("div", { class: "wide" }, el("h3", {}, title), el("table", {},
    el("thead", {}, el("tr", {}, ...["", ...heads].map((h) => el("th", {}, h)))), el("tbody", {}, ...rows)));
}

function showTables() {
  const writers = data.writers[$("group").value];
  $("scores").replaceChildren(...Object.entries(data.blocks).map(([block, [title, names]]) => {
    const shown = names.filter((name) => name in writers.system[block]);
    return table(title, shown.map((name) => name.replaceAll("_", "-")),
      Object.entries(writers).map(([writer, scores]) => el("tr", { class: writer }, el("td", {}, writer),
        ...shown.map((name) => cell(block === "reports" ? scores[block][name].slice(0, 1) : scores[block][name], name === "distinct")))));
  }));
  if ($("group").value === "all") $("scores").append(findingsTable());
}

function findingsTable() {
  const count = (n, finding, outcome) => el("td", {}, n && data.names.includes(finding)
    ? el("button", { title: "show these studies", onclick: () => choose(finding, outcome) }, String(n)) : String(n));
  return table("The system's findings, a number of studies each", [...data.outcomes, "F1"],
    Object.entries(data.per_class).map(([name, c]) => el("tr", {}, el("td", {}, name),
      ...[c.tp - c.wrong_side, c.wrong_side, c.fn, c.fp].map((n, i) => count(n, name, data.outcomes[i])),
      cell([c.f1, ...c.intervals.f1]))));
}

// Gallery

function choose(finding, outcome) {
  $("finding").value = finding;
  $("outcome").value = outcome;
  if (data.heated.includes(finding)) state.heat = finding;
  filter();
  $("studies").scrollIntoView();
}

function filter() {
  const finding = $("finding").value, outcome = $("outcome").value;
  state.rows = [...data.studies.keys()].filter((i) => {
    const about = Object.entries(data.studies[i].findings).filter(([name]) => !finding || name === finding).map(([, [what]]) => what);
    if (state.blind) return true;
    if (finding && !about.length) return false;
    if (outcome === "any error") return about.some((what) => what !== "right");
    if (outcome === "no error") return about.every((what) => what === "right");
    return !outcome || about.includes(outcome);
  });
  if (state.blind) state.rows.sort((a, b) => data.studies[a].blind[0] - data.studies[b].blind[0]);
  state.at = 0;
  const drawn = data.of > data.studies.length ? `, drawn from ${data.of}` : "";
  $("count").textContent = `${state.rows.length} of ${data.studies.length} studies${drawn}`;
  $("list").replaceChildren(...state.rows.map((row, at) => el("li", {}, el("button", { onclick: () => step(at - state.at) }))));
  state.rows.forEach((_, at) => label(at));
  show();
}

function label(at) {
  const study = data.studies[state.rows[at]], whats = Object.values(study.findings).map(([what]) => what);
  const told = data.outcomes.map((o) => [o, whats.filter((w) => w === o).length]).filter(([, n]) => n);
  const under = state.blind ? answered(study) : told.map(([o, n]) => `${n} ${o}`).join(", ") || "no finding";
  $("list").children[at].firstChild.replaceChildren(study.id, el("small", {}, under));
}

function step(by) {
  const before = state.at;
  state.at = Math.min(Math.max(state.at + by, 0), state.rows.length - 1);
  if (state.at !== before) show();
}

function show() {
  const study = data.studies[state.rows[state.at]];
  [...$("list").children].forEach((item, at) => item.firstChild.setAttribute("aria-current", at === state.at));
  const item = $("list").children[state.at]; // into view in its list; the page itself stays where it is
  if (item) $("list").scrollTop = item.offsetTop - $("list").clientHeight / 2;
  if (!study) return $("study").replaceChildren(el("p", { class: "soft" }, "No study is like that."));
  if (!state.blind) { review.opened[study.blind[0]] = true; keep(); }
  const head = el("div", { class: "bar" }, el("h2", {}, study.id), el("span", { class: "soft" }, `${state.at + 1} of ${state.rows.length}`));
  const films = el("div", { class: "views" }, ...study.views.map((view) => el("figure", { class: "view" },
    el("div", { class: "film" }, el("img", { src: view.image, alt: `${view.name} radiograph` }), el("canvas", { width: 224, height: 224 })),
    el("figcaption", { class: "soft" }, view.name))));
  if (!state.blind) films.append(chips(study));
  $("study").replaceChildren(head, films, ...(state.blind ? forms(study) : [texts(study), legend()]));
  if (!state.blind) drawHeat(study);
}

function chips(study) {
  const has = (finding) => study.views.some((view) => finding in view.heat);
  const chip = (finding, what, title) => el("button", { class: `chip ${KINDS[what] ?? ""}`, title, disabled: !has(finding),
    "aria-pressed": String(state.heat === finding), "data-finding": finding, onclick: () => heat(finding) }, el("b", {}, finding), what ? ` ${what}` : "");
  const sides = (list) => list.join(" and ") || "no side";
  const rest = data.heated.filter((finding) => !(finding in study.findings) && has(finding));
  return el("div", { class: "chips" },
    ...Object.entries(study.findings).map(([finding, [what, there, said]]) => chip(finding, what, what === "wrong side"
      ? `true: ${sides(there)}; generated: ${sides(said)}` : has(finding) ? "show where vision sees it" : "vision has no score for it")),
    rest.length ? select("heat", ["", ...rest], "heat map of …", (finding) => heat(finding || null)) : "");
}

function select(id, values, first, chosen) {
  const node = el("select", { id, "aria-label": first }, ...values.map((v) => el("option", { value: v }, v || first)));
  node.onchange = () => chosen(node.value);
  if (values.includes(state.heat)) node.value = state.heat;
  return node;
}

function heat(finding) {
  state.heat = state.heat === finding ? null : finding;
  const study = data.studies[state.rows[state.at]];
  $("study").querySelectorAll(".chip").forEach((c) => c.setAttribute("aria-pressed", c.dataset.finding === state.heat));
  if ($("heat") && $("heat").value !== state.heat) $("heat").value = "";
  drawHeat(study);
}

function drawHeat(study) {
  // What a place says, 0 to 255, is how densely one colour covers it: 49 pixels, drawn large and smooth.
  $("study").querySelectorAll(".view").forEach((figure, i) => {
    const view = study.views[i], canvas = figure.querySelector("canvas"), pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    figure.querySelector("figcaption").textContent = view.name;
    if (!(state.heat in view.heat)) return;
    figure.querySelector("figcaption").textContent += `: vision's score of ${state.heat} ${view.score[state.heat].toFixed(2)}`;
    const bytes = atob(view.heat[state.heat]), side = Math.sqrt(bytes.length);
    const small = el("canvas", { width: side, height: side }), inner = small.getContext("2d");
    const image = inner.createImageData(side, side);
    for (let at = 0; at < bytes.length; at++) image.data.set([255, 120, 20, bytes.charCodeAt(at) * 0.75], 4 * at);
    inner.putImageData(image, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  });
}

function texts(study) {
  const piece = ([text, marks]) => {
    if (!marks.length) return text;
    const worst = marks.map(([, what]) => what).sort((a, b) => data.outcomes.indexOf(b) - data.outcomes.indexOf(a))[0];
    const title = marks.map(([finding, what, how]) => `${finding}: ${what}${how === "asserted" ? "" : ` (${how} here)`}`).join("; ");
    return el("mark", { class: KINDS[worst], title }, text);
  };
  return el("div", { class: "texts" }, ...["reference", "generated"].map((which) => el("div", { id: which },
    el("h3", {}, which), el("p", { class: "report" }, ...study[which].map(piece)))));
}

const legend = () => el("p", { class: "legend soft bar" }, ...data.outcomes.map((o) => el("span", { class: KINDS[o] }, o)),
  "Missed is marked in the generated report where it denies or doubts the finding, and invented in the reference likewise.");

// Blind review

const shownAs = (study) => (study.blind[1] ? ["generated", "reference"] : ["reference", "generated"]); // A, B
const answersOf = (study) => (review.answers[study.blind[0]] ??= { A: {}, B: {} });

function answered(study) {
  const given = review.answers[study.blind[0]], n = given ? [given.A, given.B].flatMap((g) => QUESTIONS.filter(([q]) => g[q])).length : 0;
  return n === 2 * QUESTIONS.length ? "answered" : n ? "begun" : "";
}

function forms(study) {
  const answers = answersOf(study);
  return [el("div", { class: "texts" }, ...shownAs(study).map((which, i) => {
    const letter = "AB"[i], given = answers[letter];
    const put = (question, value) => { given[question] = value; keep(); label(state.at); tally(); };
    const comment = el("textarea", { placeholder: "remarks", "aria-label": `remarks on ${letter}`, oninput: () => put("remarks", comment.value) });
    comment.value = given.remarks ?? "";
    return el("div", { id: `text-${letter}` }, el("h3", {}, letter),
      el("p", { class: "report" }, study[which].map(([text]) => text).join("")),
      ...QUESTIONS.map(([question, values]) => el("fieldset", {}, el("legend", {}, question), ...values.map((value) => {
        const radio = el("input", { type: "radio", name: `${letter} ${question}`, value, oninput: () => put(question, value) });
        radio.checked = given[question] === value;
        return el("label", {}, radio, " ", value);
      }))), comment);
  }))];
}

function tally() {
  const done = data.studies.filter((study) => answered(study) === "answered").length;
  $("answered").textContent = `${done} of ${data.studies.length} studies answered`;
}

function download() {
  const answers = data.studies.flatMap((study) => shownAs(study).map((text, i) => {
    const { remarks, ...given } = review.answers[study.blind[0]]?.["AB"[i]] ?? {};
    return { id: study.id, text, shown_as: "AB"[i], correct: given["correct"] ?? null, complete: given["complete"] ?? null,
             would_sign: given["would sign"] ?? null, remarks: remarks ?? "", seen_open_before: study.blind[0] in review.opened };
  })).filter((a) => a.correct || a.complete || a.would_sign || a.remarks);
  const file = { settings: data.settings, reader: review.reader, written: new Date().toISOString(), answers };
  const link = el("a", { href: URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" })), download: "review.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function keep() {
  try { localStorage.setItem(KEPT, JSON.stringify(review)); } catch { /* a browser that keeps nothing: download before closing */ }
}

function setBlind(blind) {
  state.blind = blind;
  state.heat = null;
  $("tables").hidden = $("filters").hidden = blind;
  $("review").hidden = !blind;
  $("blind").textContent = blind ? "End the blind review" : "Blind review";
  $("title").textContent = blind ? "Reports to judge" : "Generated reports beside the true ones";
  $("settings").hidden = blind;
  tally();
  filter();
}

// Setting up

try { review = { ...review, ...JSON.parse(localStorage.getItem(KEPT)) }; } catch { /* as above */ }
const named = Object.entries(data.settings).map(([name, value]) => `${name} ${value}`);
if (data.settings.data === "sample") named.push("drawn phantoms, a demonstration");
$("settings").textContent = named.join(" · ");
$("words").replaceChildren(...data.in_words.map((line) => el("li", {}, line)));
$("constant").textContent = data.constant ? `The constant report: ${data.constant}` : "";
$("group").replaceChildren(...Object.entries(data.sizes).map(([name, n]) => el("option", { value: name }, `${name} (${n})`)));
$("finding").replaceChildren(...["", ...data.names].map((name) => el("option", { value: name }, name || "any finding")));
$("outcome").replaceChildren(...["", "any error", ...data.outcomes, "no error"].map((o) => el("option", { value: o }, o || "right or not")));
$("reader").value = review.reader;
$("group").onchange = showTables;
$("finding").onchange = $("outcome").onchange = filter;
$("all").onclick = () => { $("finding").value = $("outcome").value = ""; filter(); };
$("reader").oninput = () => { review.reader = $("reader").value; keep(); };
$("download").onclick = download;
$("blind").onclick = () => setBlind(!state.blind);
document.onkeydown = (event) => {
  const typing = event.target.matches("textarea, select, input:not([type=radio])");
  const choosing = event.target.matches("[type=radio]") && event.key.startsWith("Arrow");
  if (event.ctrlKey || event.metaKey || event.altKey || typing || choosing) return;
  const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
};
document.addEventListener("change", (event) => event.target.matches("select") && event.target.blur()); // so that j steps
showTables();
setBlind(location.hash === "#blind"); // report.html#blind opens blind at once

// What report.html does. All that comes from data becomes a text node or an attribute's value, never HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CLASS_OF = { "right": "right", "wrong side": "side", "missed": "missed", "invented": "invented" };
const QUESTIONS = {
  "correct": ["yes", "partly", "no"],
  "complete": ["yes", "partly", "no"],
  "would sign": ["yes", "no"],
};

// rows: the studies listed, as places in data.studies; at: which of them is shown; heat: the finding whose map
// lies on the films, or null
const state = { blind: false, rows: [], at: 0, heat: null };
// What a reader did, kept in the browser: answers, and opened (seen with marks), by a study's place in review
let review = { reader: "", answers: {}, opened: {} };

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function options(values, words = (value) => value) {
  return values.map((value) => el("option", { value }, words(value)));
}

// Tables

function interval([low, high], digits) {
  return el("small", {}, `${low.toFixed(digits)}–${high.toFixed(digits)}`);
}

function cell([value, ...ends], digits = 3) {
  return el("td", {}, value.toFixed(digits), interval(ends, digits));
}

function table(title, heads, rows) {
  const head = el("tr", {}, ...["", ...heads].map((text) => el("th", {}, text)));
  return el("div", { class: "wide" }, el("h3", {}, title),
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
}

function showTables() {
  const writers = data.writers[$("group").value];
  $("scores").replaceChildren(...Object.entries(data.blocks).map(([block, [title, names]]) => {
    const shown = names.filter((name) => name in writers.system[block]);
    // an outline has findings alone, and swapping changes nothing of the reports themselves
    const known = Object.entries(writers).filter(([, scores]) => block in scores);
    const rows = known.map(([writer, scores]) => {
      const cells = shown.map((name) => cell(scores[block][name], name === "distinct" ? 0 : 3));
      return el("tr", { class: writer }, el("td", {}, writer), ...cells);
    });
    return table(title, shown.map((name) => name.replaceAll("_", "-")), rows);
  }));
  if ($("group").value === "all") $("scores").append(findingsTable());
}

function findingsTable() {
  const rates = ["precision", "recall", "f1"];
  const rows = Object.entries(data.per_class).map(([name, of]) => {
    const counts = data.outcomes.map((outcome) => {
      const key = outcome.replace(" ", "_"), shown = interval(of.intervals[key], 0);
      if (!of[key] || !data.names.includes(name)) return el("td", {}, String(of[key]), shown);
      const go = () => choose(name, outcome);
      return el("td", {}, el("button", { title: "show these studies", onclick: go }, String(of[key])), shown);
    });
    const cells = rates.map((rate) => cell([of[rate], ...of.intervals[rate]]));
    return el("tr", {}, el("td", {}, name), ...counts, ...cells);
  });
  return table("The system's findings: studies", [...data.outcomes, ...rates], rows);
}

// Gallery

function choose(finding, outcome) {
  $("finding").value = finding;
  $("outcome").value = outcome;
  if (data.heated.includes(finding)) state.heat = finding;
  filter();
  $("studies").scrollIntoView();
}

function fits(study, finding, outcome) {
  const about = Object.entries(study.findings).filter(([name]) => !finding || name === finding);
  const became = about.map(([, [what]]) => what);
  if (finding && !became.length) return false;
  if (outcome === "any error") return became.some((what) => what !== "right");
  if (outcome === "no error") return became.every((what) => what === "right");
  return !outcome || became.includes(outcome);
}

function filter() {
  const all = [...data.studies.keys()];
  state.rows = state.blind
    ? all.sort((a, b) => data.studies[a].blind[0] - data.studies[b].blind[0])
    : all.filter((row) => fits(data.studies[row], $("finding").value, $("outcome").value));
  state.at = 0;
  const drawn = data.of > all.length ? `, drawn from ${data.of}` : "";
  $("count").textContent = `${state.rows.length} of ${all.length} studies${drawn}`;
  $("list").replaceChildren(...state.rows.map((_, at) =>
    el("li", {}, el("button", { onclick: () => step(at - state.at) }))));
  state.rows.forEach((_, at) => label(at));
  show();
}

function label(at) {
  const study = data.studies[state.rows[at]];
  const became = Object.values(study.findings).map(([what]) => what);
  const counts = data.outcomes.map((outcome) => [became.filter((what) => what === outcome).length, outcome]);
  const told = counts.filter(([n]) => n).map((pair) => pair.join(" ")).join(", ") || "no finding";
  $("list").children[at].firstChild.replaceChildren(study.id,
    el("small", {}, state.blind ? answered(study) : told));
}

function step(by) {
  const before = state.at;
  state.at = Math.min(Math.max(state.at + by, 0), state.rows.length - 1);
  if (state.at !== before) show();
}

function show() {
  const study = data.studies[state.rows[state.at]];
  if (!study) return $("study").replaceChildren(el("p", { class: "soft" }, "No study is like that."));
  const items = [...$("list").children];
  items.forEach((item, at) => item.firstChild.setAttribute("aria-current", at === state.at));
  // into view in its list; the page itself stays where it is
  $("list").scrollTop = items[state.at].offsetTop - $("list").clientHeight / 2;
  const head = el("div", { class: "bar" }, el("h2", {}, study.id),
    el("span", { class: "soft" }, `${state.at + 1} of ${state.rows.length}`));
  const films = el("div", { class: "views" }, ...study.views.map(film));
  if (state.blind) return $("study").replaceChildren(head, films, forms(study));
  films.append(chips(study));
  $("study").replaceChildren(head, films, texts(study), legend());
  drawHeat(study);
  review.opened[study.blind[0]] = true;
  keep();
}

function film(view) {
  const image = el("img", { src: view.image, alt: `${view.name} radiograph` });
  const cover = el("canvas", { width: 224, height: 224 });
  return el("figure", { class: "view" }, el("div", { class: "film" }, image, cover),
    el("figcaption", { class: "soft" }, view.name));
}

function chips(study) {
  const has = (finding) => study.views.some((view) => finding in view.heat);
  const sides = (list) => list.join(" and ") || "no side";
  const own = Object.entries(study.findings).map(([finding, [what, there, said]]) => {
    let title = has(finding) ? "show where vision sees it" : "vision has no score for it";
    if (what === "wrong side") title = `true: ${sides(there)}; generated: ${sides(said)}`;
    const pressed = state.heat === finding;
    const chip = el("button", { class: `chip ${CLASS_OF[what]}`, title, "data-finding": finding,
      "aria-pressed": pressed, onclick: () => heat(finding) }, el("b", {}, finding), ` ${what}`);
    chip.disabled = !has(finding);
    return chip;
  });
  const others = data.heated.filter((finding) => !(finding in study.findings) && has(finding));
  if (!others.length) return el("div", { class: "chips" }, ...own);
  const choice = el("select", { id: "heat", "aria-label": "heat map of another finding" },
    ...options(["", ...others], (finding) => finding || "heat map of …"));
  choice.onchange = () => heat(choice.value || null);
  choice.value = others.includes(state.heat) ? state.heat : "";
  return el("div", { class: "chips" }, ...own, choice);
}

function heat(finding) {
  state.heat = state.heat === finding ? null : finding;
  $("study").querySelectorAll(".chip").forEach((chip) =>
    chip.setAttribute("aria-pressed", chip.dataset.finding === state.heat));
  if ($("heat") && $("heat").value !== state.heat) $("heat").value = "";
  drawHeat(data.studies[state.rows[state.at]]);
}

function drawHeat(study) {
  // How much a place speaks for the finding, 0 to 255, is how densely one colour covers it: 49 pixels, drawn
  // large and smooth.
  $("study").querySelectorAll(".view").forEach((figure, i) => {
    const view = study.views[i], cover = figure.querySelector("canvas"), pen = cover.getContext("2d");
    const caption = figure.querySelector("figcaption");
    pen.clearRect(0, 0, cover.width, cover.height);
    caption.textContent = view.name;
    if (!(state.heat in view.heat)) return;
    caption.textContent += `: vision's score of ${state.heat} ${view.score[state.heat].toFixed(2)}`;
    const bytes = atob(view.heat[state.heat]), side = Math.sqrt(bytes.length);
    const small = el("canvas", { width: side, height: side }), dots = small.getContext("2d");
    const image = dots.createImageData(side, side);
    for (let at = 0; at < bytes.length; at++)
      image.data.set([255, 120, 20, 0.75 * bytes.charCodeAt(at)], 4 * at);
    dots.putImageData(image, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, cover.width, cover.height);
  });
}

function texts(study) {
  const rank = (what) => data.outcomes.indexOf(what);
  const piece = ([text, marks]) => {
    if (!marks.length) return text;
    const worst = marks.map(([, what]) => what).sort((a, b) => rank(b) - rank(a))[0];
    const words = marks.map(([finding, what, state]) =>
      `${finding}: ${what}` + (state === "asserted" ? "" : ` (${state} here)`));
    return el("mark", { class: CLASS_OF[worst], title: words.join("; ") }, text);
  };
  return el("div", { class: "texts" }, ...["reference", "generated"].map((which) =>
    el("div", { id: which }, el("h3", {}, which), el("p", { class: "report" }, ...study[which].map(piece)))));
}

function legend() {
  return el("p", { class: "legend soft bar" },
    ...data.outcomes.map((outcome) => el("span", { class: CLASS_OF[outcome] }, outcome)),
    "Where one text asserts a finding and the other denies or doubts it, both places are marked.");
}

// Blind review

const shownAs = (study) => (study.blind[1] ? ["generated", "reference"] : ["reference", "generated"]); // A, B

function answersTo(study) {
  return (review.answers[study.blind[0]] ??= { A: {}, B: {} });
}

function answered(study) {
  const given = Object.values(review.answers[study.blind[0]] ?? {});
  const n = given.flatMap((answers) => Object.keys(QUESTIONS).filter((question) => answers[question])).length;
  return n === 2 * Object.keys(QUESTIONS).length ? "answered" : n ? "begun" : "";
}

function forms(study) {
  return el("div", { class: "texts" }, ...shownAs(study).map((which, i) => {
    const letter = "AB"[i], given = answersTo(study)[letter];
    const put = (question, value) => {
      given[question] = value;
      keep();
      label(state.at);
      tally();
    };
    const questions = Object.entries(QUESTIONS).map(([question, values]) =>
      el("fieldset", {}, el("legend", {}, question), ...values.map((value) => {
        const name = `${letter} ${question}`;
        const radio = el("input", { type: "radio", name, value, oninput: () => put(question, value) });
        radio.checked = given[question] === value;
        return el("label", {}, radio, " ", value);
      })));
    const remarks = el("textarea", { placeholder: "remarks", "aria-label": `remarks on ${letter}` });
    remarks.value = given.remarks ?? "";
    remarks.oninput = () => put("remarks", remarks.value);
    const text = study[which].map(([piece]) => piece).join("");
    return el("div", { id: `text-${letter}` }, el("h3", {}, letter), el("p", { class: "report" }, text),
      ...questions, remarks);
  }));
}

function tally() {
  const done = data.studies.filter((study) => answered(study) === "answered").length;
  $("answered").textContent = `${done} of ${data.studies.length} studies answered`;
}

function download() {
  const answers = data.studies.flatMap((study) => shownAs(study).map((text, i) => {
    const given = answersTo(study)["AB"[i]];
    return {
      id: study.id, text, shown_as: "AB"[i], correct: given["correct"] ?? null,
      complete: given["complete"] ?? null, would_sign: given["would sign"] ?? null,
      remarks: given.remarks ?? "", seen_open_before: study.blind[0] in review.opened,
    };
  })).filter((a) => a.correct || a.complete || a.would_sign || a.remarks);
  const file = { settings: data.settings, reader: review.reader, written: new Date().toISOString(), answers };
  const blob = new Blob([JSON.stringify(file, null, 1)], { type: "application/json" });
  const link = el("a", { href: URL.createObjectURL(blob), download: "review.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // when it surely is saved
}

function keep() {
  try {
    localStorage.setItem("llamaxr review " + data.key, JSON.stringify(review));
  } catch { /* a browser that keeps nothing: the answers are in the open page alone, until downloaded */ }
}

function setBlind(blind) {
  state.blind = blind;
  state.heat = null;
  for (const id of ["tables", "filters", "settings"]) $(id).hidden = blind;
  $("review").hidden = !blind;
  $("blind").textContent = blind ? "End the blind review" : "Blind review";
  $("title").textContent = blind ? "Reports to judge" : "Generated reports beside the true ones";
  tally();
  filter();
}

// Setting up

try {
  review = { ...review, ...JSON.parse(localStorage.getItem("llamaxr review " + data.key)) };
} catch { /* as above */ }
const settings = Object.entries(data.settings).map((pair) => pair.join(" "));
if (data.settings.data === "sample") settings.push("drawn phantoms, a demonstration");
$("settings").textContent = settings.join(" · ");
$("words").replaceChildren(...data.in_words.map((line) => el("li", {}, line)));
$("constant").textContent = data.constant ? `The constant report: ${data.constant}` : "";
$("group").replaceChildren(...options(Object.keys(data.sizes), (name) => `${name} (${data.sizes[name]})`));
$("finding").replaceChildren(...options(["", ...data.names], (name) => name || "any finding"));
$("outcome").replaceChildren(...options(["", "any error", ...data.outcomes, "no error"],
  (name) => name || "right or not"));
$("reader").value = review.reader;
$("group").onchange = showTables;
$("finding").onchange = $("outcome").onchange = filter;
$("all").onclick = () => choose("", "");
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
// so that a key steps again after something was chosen
document.addEventListener("change", (event) => event.target.matches("select") && event.target.blur());
showTables();
setBlind(location.hash === "#blind"); // report.html#blind opens blind at once

// The script of report.html. Whatever comes from data becomes a text node or an attribute's value, never HTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const CLASS_OF = { "right": "right", "wrong side": "side", "missed": "missed", "invented": "invented" };
const QUESTIONS = {
  "correct": ["yes", "partly", "no"],
  "complete": ["yes", "partly", "no"],
  "would sign": ["yes", "no"],
};

// rows: the listed studies, as indices into data.studies; current: the index into rows of the study shown;
// heat: the finding whose heat map is on the films, or null
const state = { blind: false, rows: [], current: 0, heat: null };
// The reader's work, stored in the browser. By review_position: the answers, and the studies opened with marks.
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

function options(values, label = (value) => value) {
  return values.map((value) => el("option", { value }, label(value)));
}

// Tables

function interval([low, high], digits) {
  return el("small", {}, `${low.toFixed(digits)}–${high.toFixed(digits)}`);
}

function cell(score, digits = 3, lead = null) {
  if (!score || score[0] === null) return el("td");  // what is undefined is empty
  const [value, ...ends] = score, paired = lead ? [el("small", { class: "lead" }, lead)] : [];
  return el("td", {}, value.toFixed(digits), interval(ends, digits), ...paired);
}

function table(title, heads, rows) {
  const head = el("tr", {}, ...["", ...heads].map((text) => el("th", {}, text)));
  return el("div", { class: "wide" }, el("h3", {}, title),
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
}

function showTables() {
  const writers = data.writers[$("group").value], leads = data.leads[$("group").value];
  $("scores").replaceChildren(...Object.entries(data.blocks).map(([block, [title, names]]) => {
    const shown = names.filter((name) => Object.values(writers).some((scores) => scores[block]?.[name]));
    // some writers lack a block: an outline has findings only, and swapping leaves the reports as they are
    const scored = Object.entries(writers).filter(([, scores]) => block in scores);
    const rows = scored.map(([writer, scores]) => {
      const digits = (name) => ["distinct", "sides_named"].includes(name) ? 0 : 3;
      const cells = shown.map((name) => cell(scores[block][name], digits(name), leads[writer]?.[block]?.[name]));
      return el("tr", { class: writer }, el("td", {}, writer), ...cells);
    });
    return table(title, shown.map((name) => name.replaceAll("_", "-")), rows);
  }));
  if ($("group").value === "all") $("scores").append(findingsTable());
}

function findingsTable() {
  const rates = ["precision", "recall", "f1"];
  const rows = Object.entries(data.per_class).map(([name, scores]) => {
    const counts = data.outcomes.map((outcome) => {
      const key = outcome.replace(" ", "_"), ends = interval(scores.intervals[key], 0);
      if (!scores[key] || !data.classes.includes(name)) return el("td", {}, String(scores[key]), ends);
      const onclick = () => choose(name, outcome);
      return el("td", {}, el("button", { title: "show these studies", onclick }, String(scores[key])), ends);
    });
    const cells = rates.map((rate) => cell([scores[rate], ...scores.intervals[rate]]));
    return el("tr", {}, el("td", {}, name), ...counts, ...cells);
  });
  return table("The system's findings, in studies", [...data.outcomes, ...rates], rows);
}

// Gallery

function choose(finding, outcome) {
  $("finding").value = finding;
  $("outcome").value = outcome;
  if (data.with_heat_map.includes(finding)) state.heat = finding;
  filter();
  $("studies").scrollIntoView();
}

function outcomesOf(study, finding = "") {
  const findings = Object.entries(study.findings).filter(([name]) => !finding || name === finding);
  return findings.map(([, [outcome]]) => outcome);
}

function matches(study, finding, outcome) {
  const outcomes = outcomesOf(study, finding);
  if (finding && !outcomes.length) return false;
  if (outcome === "any error") return outcomes.some((each) => each !== "right");
  if (outcome === "no error") return outcomes.every((each) => each === "right");
  return !outcome || outcomes.includes(outcome);
}

function filter() {
  const all = [...data.studies.keys()];
  state.rows = state.blind
    ? all.sort((a, b) => data.studies[a].review_position - data.studies[b].review_position)
    : all.filter((row) => matches(data.studies[row], $("finding").value, $("outcome").value));
  state.current = 0;
  const sampled = data.n_evaluated > all.length ? `, drawn from ${data.n_evaluated}` : "";
  $("count").textContent = `${state.rows.length} of ${all.length} studies${sampled}`;
  $("list").replaceChildren(...state.rows.map((_, i) =>
    el("li", {}, el("button", { onclick: () => step(i - state.current) }))));
  state.rows.forEach((_, i) => label(i));
  show();
}

function label(i) {
  const study = data.studies[state.rows[i]], outcomes = outcomesOf(study);
  const counts = data.outcomes.map((outcome) => [outcomes.filter((each) => each === outcome).length, outcome]);
  const summary = counts.filter(([n]) => n).map((pair) => pair.join(" ")).join(", ") || "no finding";
  $("list").children[i].firstChild.replaceChildren(study.id,
    el("small", {}, state.blind ? progressOf(study) : summary));
}

function step(by) {
  const before = state.current;
  state.current = Math.min(Math.max(state.current + by, 0), state.rows.length - 1);
  if (state.current !== before) show();
}

function show() {
  const study = data.studies[state.rows[state.current]];
  if (!study) return $("study").replaceChildren(el("p", { class: "soft" }, "No study matches."));
  const items = [...$("list").children];
  items.forEach((item, i) => item.firstChild.setAttribute("aria-current", i === state.current));
  // scroll the list, not the page
  $("list").scrollTop = items[state.current].offsetTop - $("list").clientHeight / 2;
  const head = el("div", { class: "bar" }, el("h2", {}, study.id),
    el("span", { class: "soft" }, `${state.current + 1} of ${state.rows.length}`));
  const films = el("div", { class: "views" }, ...study.views.map(film));
  if (state.blind) return $("study").replaceChildren(head, films, forms(study));
  films.append(chips(study));
  $("study").replaceChildren(head, films, texts(study), legend());
  drawHeat(study);
  review.opened[study.review_position] = true;
  saveReview();
}

function film(view) {
  const image = el("img", { src: view.image, alt: `${view.name} radiograph` });
  const overlay = el("canvas", { width: 224, height: 224 });
  return el("figure", { class: "view" }, el("div", { class: "film" }, image, overlay),
    el("figcaption", { class: "soft" }, view.name));
}

function chips(study) {
  const hasMap = (finding) => study.views.some((view) => finding in view.heat);
  const sides = (list) => list.join(" and ") || "no side";
  const own = Object.entries(study.findings).map(([finding, [outcome, trueSides, generatedSides]]) => {
    let title = hasMap(finding) ? "show where vision sees it" : "vision has no score for it";
    if (outcome === "wrong side") title = `true: ${sides(trueSides)}; generated: ${sides(generatedSides)}`;
    const chip = el("button", { class: `chip ${CLASS_OF[outcome]}`, title, "data-finding": finding,
      "aria-pressed": state.heat === finding, onclick: () => toggleHeat(finding) },
      el("b", {}, finding), ` ${outcome}`);
    chip.disabled = !hasMap(finding);
    return chip;
  });
  const others = data.with_heat_map.filter((finding) => !(finding in study.findings) && hasMap(finding));
  if (!others.length) return el("div", { class: "chips" }, ...own);
  const select = el("select", { id: "heat", "aria-label": "heat map of another finding" },
    ...options(["", ...others], (finding) => finding || "heat map of …"));
  select.onchange = () => toggleHeat(select.value || null);
  select.value = others.includes(state.heat) ? state.heat : "";
  return el("div", { class: "chips" }, ...own, select);
}

function toggleHeat(finding) {
  state.heat = state.heat === finding ? null : finding;
  $("study").querySelectorAll(".chip").forEach((chip) =>
    chip.setAttribute("aria-pressed", chip.dataset.finding === state.heat));
  if ($("heat") && $("heat").value !== state.heat) $("heat").value = "";
  drawHeat(data.studies[state.rows[state.current]]);
}

function drawHeat(study) {
  // One colour, more opaque where there is more evidence (0 to 255): 7 x 7 pixels, enlarged and smoothed.
  $("study").querySelectorAll(".view").forEach((figure, i) => {
    const view = study.views[i], overlay = figure.querySelector("canvas"), pen = overlay.getContext("2d");
    const caption = figure.querySelector("figcaption");
    pen.clearRect(0, 0, overlay.width, overlay.height);
    caption.textContent = view.name;
    if (!(state.heat in view.heat)) return;
    caption.textContent += `: vision's score of ${state.heat} ${view.score[state.heat].toFixed(2)}`;
    const bytes = atob(view.heat[state.heat]), side = Math.sqrt(bytes.length);
    const small = el("canvas", { width: side, height: side }), smallPen = small.getContext("2d");
    const pixels = smallPen.createImageData(side, side);
    for (let i = 0; i < bytes.length; i++)
      pixels.data.set([255, 120, 20, 0.75 * bytes.charCodeAt(i)], 4 * i);
    smallPen.putImageData(pixels, 0, 0);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(small, 0, 0, overlay.width, overlay.height);
  });
}

function texts(study) {
  const rank = (outcome) => data.outcomes.indexOf(outcome);
  const piece = ([text, marks]) => {
    if (!marks.length) return text;
    const worst = marks.map(([, outcome]) => outcome).sort((a, b) => rank(b) - rank(a))[0];
    const notes = marks.map(([finding, outcome, state]) =>
      `${finding}: ${outcome}` + (state === "asserted" ? "" : ` (${state} here)`));
    return el("mark", { class: CLASS_OF[worst], title: notes.join("; ") }, text);
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

// what A and B are
const textsInOrder = (study) => study.a_is_generated ? ["generated", "reference"] : ["reference", "generated"];

function answersTo(study) {
  return (review.answers[study.review_position] ??= { A: {}, B: {} });
}

function progressOf(study) {
  const both = Object.values(review.answers[study.review_position] ?? {});
  const n = both.flatMap((answers) => Object.keys(QUESTIONS).filter((question) => answers[question])).length;
  return n === 2 * Object.keys(QUESTIONS).length ? "answered" : n ? "started" : "";
}

function forms(study) {
  return el("div", { class: "texts" }, ...textsInOrder(study).map((which, i) => {
    const letter = "AB"[i], answers = answersTo(study)[letter];
    const answer = (question, value) => {
      answers[question] = value;
      saveReview();
      label(state.current);
      tally();
    };
    const questions = Object.entries(QUESTIONS).map(([question, values]) =>
      el("fieldset", {}, el("legend", {}, question), ...values.map((value) => {
        const name = `${letter} ${question}`, oninput = () => answer(question, value);
        const radio = el("input", { type: "radio", name, value, oninput });
        radio.checked = answers[question] === value;
        return el("label", {}, radio, " ", value);
      })));
    const remarks = el("textarea", { placeholder: "remarks", "aria-label": `remarks on ${letter}` });
    remarks.value = answers.remarks ?? "";
    remarks.oninput = () => answer("remarks", remarks.value);
    const text = study[which].map(([piece]) => piece).join("");
    return el("div", { id: `text-${letter}` }, el("h3", {}, letter), el("p", { class: "report" }, text),
      ...questions, remarks);
  }));
}

function tally() {
  const n = data.studies.filter((study) => progressOf(study) === "answered").length;
  $("answered").textContent = `${n} of ${data.studies.length} studies answered`;
}

function download() {
  const answers = data.studies.flatMap((study) => textsInOrder(study).map((text, i) => {
    const own = answersTo(study)["AB"[i]];
    return {
      id: study.id, text, shown_as: "AB"[i], correct: own["correct"] ?? null,
      complete: own["complete"] ?? null, would_sign: own["would sign"] ?? null,
      remarks: own.remarks ?? "", seen_open_before: study.review_position in review.opened,
    };
  })).filter((a) => a.correct || a.complete || a.would_sign || a.remarks);
  const file = { settings: data.settings, reader: review.reader, written: new Date().toISOString(), answers };
  const blob = new Blob([JSON.stringify(file, null, 1)], { type: "application/json" });
  const link = el("a", { href: URL.createObjectURL(blob), download: "review.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000); // long enough for the browser to save it
}

function saveReview() {
  try {
    localStorage.setItem("llamaxr review " + data.key, JSON.stringify(review));
  } catch { /* a browser without storage: the answers exist only in the open page, until downloaded */ }
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

// Setup

try {
  review = { ...review, ...JSON.parse(localStorage.getItem("llamaxr review " + data.key)) };
} catch { /* a browser without storage */ }
const settings = Object.entries(data.settings).map((pair) => pair.join(" "));
if (data.settings.data === "sample") settings.push("drawn phantoms, a demonstration");
$("settings").textContent = settings.join(" · ");
$("words").replaceChildren(...data.in_words.map((line) => el("li", {}, line)));
$("constant").textContent = data.constant_report ? `The constant report: ${data.constant_report}` : "";
$("group").replaceChildren(...options(Object.keys(data.group_sizes),
  (name) => `${name} (${data.group_sizes[name]})`));
$("finding").replaceChildren(...options(["", ...data.classes], (name) => name || "any finding"));
$("outcome").replaceChildren(...options(["", "any error", ...data.outcomes, "no error"],
  (name) => name || "any outcome"));
$("reader").value = review.reader;
$("group").onchange = showTables;
$("finding").onchange = $("outcome").onchange = filter;
$("all").onclick = () => choose("", "");
$("reader").oninput = () => { review.reader = $("reader").value; saveReview(); };
$("download").onclick = download;
$("blind").onclick = () => setBlind(!state.blind);
document.onkeydown = (event) => {
  const typing = event.target.matches("textarea, select, input:not([type=radio])");
  const choosing = event.target.matches("[type=radio]") && event.key.startsWith("Arrow");
  if (event.ctrlKey || event.metaKey || event.altKey || typing || choosing) return;
  const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
};
// a select gives up the focus, so that keys step through the studies again
document.addEventListener("change", (event) => event.target.matches("select") && event.target.blur());
showTables();
setBlind(location.hash === "#blind"); // report.html#blind starts with the blind review

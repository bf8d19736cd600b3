// One screen of the gateway's own reports. Everything shown is set as text, never as markup; nothing is kept but the key,
// in this tab's session. The same facts: `appliance status`, `appliance doctor`.
import { summary, shares, calendarRows, ago, heard, REASONS } from "/appliance/ui/facts.js";

const EVERY_MS = 2000;
const $ = (id) => document.getElementById(id);
let key = sessionStorage.getItem("appliance-key") || "";
let last = null;
let open = new Set();
let timer = 0;

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "width") made.style.width = value;
    else if (name === "on") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined).map((c) => (c instanceof Node ? c : String(c))));
  return made;
}

async function report(path) {
  const answer = await fetch(path, {
    headers: { authorization: `Bearer ${key}` }, cache: "no-store", credentials: "omit", redirect: "error",
    signal: AbortSignal.timeout(8000),
  });
  if (answer.status === 401 || answer.status === 403) throw new Error("key");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

async function refresh() {
  clearTimeout(timer);
  if (!key) return;
  try {
    const [status, decisions, overview] = await Promise.all(
      ["/appliance/status", "/appliance/decisions?limit=500", "/appliance/overview"].map(report));
    last = { status, decisions: decisions.decisions, overview, at: new Date() };
    show(last);
  } catch (error) {
    if (error.message === "key") return lock("This key may not read reports.");
    unreachable();
  }
  timer = setTimeout(refresh, document.hidden ? EVERY_MS * 5 : EVERY_MS);
}

function state(word, text) {
  if ($("state").textContent !== text) $("state").textContent = text;  // a screen reader hears changes alone
  $("state").dataset.state = word;
}

function lock(hint) {
  key = "";
  sessionStorage.removeItem("appliance-key");
  $("main").hidden = $("forget").hidden = true;
  $("unlock").hidden = false;
  $("hint").textContent = hint || "The master key, or one with reports: true in access.keys. It stays in this tab and goes to this host only.";
  $("updated").textContent = $("about").textContent = "";
  state("waiting", "waiting for a key");
  $("key").focus();
}

function unreachable() {
  state("bad", "no answer");
  const since = last ? `This is how it was at ${clock(last.at)}. ` : "";
  notes([{ bad: true, title: "The gateway does not answer.", text: `${since}Look with \`systemctl status appliance-gateway\`.` }]);
  $("main").hidden = false;
  $("unlock").hidden = true;
}

function notes(list) {
  const wanted = JSON.stringify(list);
  if ($("notes").dataset.shown === wanted) return;
  $("notes").dataset.shown = wanted;
  $("notes").replaceChildren(...list.map((n) => el("div", { class: n.bad ? "note bad" : "note" }, el("strong", {}, n.title), ...words(n.text))));
}

// What stands between backticks is to be typed.
const words = (text) => text.split("`").map((part, n) => (n % 2 ? el("code", {}, part) : part));

const clock = (time) => `${time.toISOString().slice(11, 19)} UTC`;  // as the decisions and the logs say it

function show(now) {
  const sum = summary(now);
  $("unlock").hidden = true;
  $("main").hidden = $("forget").hidden = false;
  state(sum.state, sum.word);
  $("updated").textContent = `seen ${clock(now.at)}`;
  notes(sum.notes);
  $("numbers").replaceChildren(...sum.tiles.map(tile));
  $("shares").replaceChildren(...shares(now).map(group));
  const routers = Object.entries(now.status.routers);
  $("routers").replaceChildren(...(routers.length ? routers.map(router) : [el("p", { class: "none" }, "No routing model is configured; groups are routed by weight.")]));
  rows(now.decisions.slice(0, 25));
  const calendar = calendarRows(now.overview.calendar, now.at);
  $("calendar").replaceChildren(...(calendar.length ? calendar.map(ending) : [el("li", { class: "none" }, "Nothing that ends is configured.")]));
  const first = now.status.workers[0];
  $("about").textContent = `appliance ${first.release ?? first.version}, LiteLLM ${first.litellm}, ${now.status.workers.length} worker(s), up since ${first.started_at.slice(0, 16).replace("T", " ")} UTC`;
}

function tile(each) {
  const bar = each.share === undefined ? null
    : el("div", { class: "meter", "data-state": each.state, role: "meter", "aria-label": each.label, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(each.share * 100) },
      el("i", { width: `${Math.min(each.share, 1) * 100}%` }));
  return el("div", {}, el("dt", {}, each.label), el("dd", {}, el("div", { class: "value", "data-state": each.state === "bad" || each.state === "warn" ? each.state : null }, each.value), el("div", { class: "quiet" }, each.text), bar));
}

function group(each) {
  const text = each.members.map((m) => `${m.id} ${m.percent} %`).join(", ");
  return el("div", { class: "group" },
    el("h3", {}, each.name, el("span", { class: "quiet" }, ` · ${each.how}`)),
    el("div", { class: "stack", role: "img", "aria-label": `${each.total} decisions: ${text}` }, ...each.members.map((m) => el("i", { class: m.colour, width: `${m.share * 100}%` }))),
    el("ul", { class: "legend" }, ...each.members.map((m) => el("li", {}, el("b", { class: m.colour, "aria-hidden": "true" }), m.id, el("span", { class: "quiet", "data-state": m.problem ? "warn" : null }, m.problem || m.model), el("span", {}, `${m.percent} %`)))));
}

function router([name, view]) {
  const { serving, channel, last_known_good: kept } = view;
  const signed = (each) => `${each.signed_by}, ${ago(each.signed_at, last.at)}`;
  const facts = serving
    ? [["Serves", `${serving.artifact} (${serving.strategy})`], ["Signed by", signed(serving)], ["Loaded", `${ago(serving.loaded_at, last.at)}, from ${serving.origin}`], ["Digest", serving.digest.slice(0, 16)]]
    : [["Serves", "nothing: routed by weight"]];
  if (!kept) facts.push(["Last known good", "none is kept"]);
  else if (kept.digest === serving?.digest) facts.push(["Last known good", "the same, kept on this host"]);
  else facts.push(["Last known good", `${kept.artifact}, digest ${kept.digest.slice(0, 16)}`], ["Its signer", signed(kept)]);
  if (channel) facts.push(["Channel", `${channel.name}, epoch ${channel.epoch ?? 0}`], ["Registry", heard(channel)]);
  if (view.problem) facts.push(["Problem", `${view.problem.code}: ${view.problem.cause}`], ["Next", view.problem.remedy]);
  return el("div", { class: "group" }, el("h3", {}, name), el("dl", { class: "facts" }, ...facts.flatMap(([term, value]) => [el("dt", {}, term), el("dd", { "data-state": term === "Problem" ? "bad" : null }, ...words(value))])));
}

function rows(list) {
  const body = $("decisions");
  if (body.contains(document.activeElement)) return;  // never move what a hand is on
  if (!list.length) return body.replaceChildren(el("tr", {}, el("td", { colspan: 8, class: "none" }, "No request yet.")));
  body.replaceChildren(...list.flatMap((d) => {
    const shown = open.has(d.request_id);
    const id = `d-${d.request_id}`;
    const toggle = () => { shown ? open.delete(d.request_id) : open.add(d.request_id); document.activeElement.blur(); rows(list); document.querySelector(`[aria-controls="${CSS.escape(id)}"]`)?.focus(); };
    const row = el("tr", {}, el("td", {}, d.at.slice(11, 19)), el("td", { class: "spare" }, d.group), el("td", {}, d.selected || "none"), el("td", { class: "spare" }, d.strategy),
      el("td", { "data-state": d.outcome === "success" ? null : "warn" }, REASONS[d.reason] || d.reason), el("td", { class: "num spare" }, d.score === null ? "" : d.score.toFixed(3)), el("td", { class: "num" }, `${d.latency_ms.toFixed(1)} ms`),
      el("td", {}, el("button", { type: "button", "aria-expanded": String(shown), "aria-controls": id, on: toggle }, shown ? "Less" : "More")));
    if (!shown) return [row];
    const scores = Object.entries(d.scores).sort((a, b) => b[1] - a[1]).map(([label, score]) => `${label} ${score.toFixed(3)}`).join(", ");
    const out = Object.entries(d.excluded).map(([who, why]) => `${who} (${why})`).join(", ");
    const facts = [["Request", d.request_id], ["Group", `${d.group}, by ${d.strategy}`], ["Scores", scores || "none"], ["Could be chosen", d.candidates.join(", ")], ["Left out", out || "nobody"], ["Prompt digest", d.prompt_digest || "none"]];
    return [row, el("tr", { class: "detail", id }, el("td", { colspan: 8 }, el("dl", { class: "facts" }, ...facts.flatMap(([t, v]) => [el("dt", {}, t), el("dd", {}, v)]))))];
  }));
}

function ending(each) {
  return el("li", {}, el("span", {}, each.what), el("span", { "data-state": each.state === "good" ? null : each.state }, each.text), el("span", { class: "quiet spare" }, each.date),
    el("div", { class: "meter", "data-state": each.state, "aria-hidden": "true" }, el("i", { width: `${each.share * 100}%` })));
}

$("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  $("key").value = "";
  sessionStorage.setItem("appliance-key", key);
  refresh();
});
$("forget").addEventListener("click", () => { last = null; open = new Set(); lock(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
if (key) refresh(); else lock();

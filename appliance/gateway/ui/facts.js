// Pure: the gateway's reports in, what the page says out.

const DAY_MS = 86400000;
const QUIET_S = 900;  // without a word from the registry, and somebody should look

export const REASONS = {
  best_score: "best score", only_candidate: "only candidate", configured_round_robin: "by weight, as configured",
  no_prompt: "no prompt text", no_router: "no router: by weight", overload_shed: "overload: by weight",
  deadline: "too slow: by weight", breaker_open: "breaker open: by weight", router_error: "router failed: by weight",
  no_label_for_candidates: "no label: by weight", no_healthy_deployment: "no healthy deployment",
  last_resort: "group out: last resort",
};

export function quantile(values, q) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)];
}

export function ago(time, now) {
  const seconds = (now - new Date(time)) / 1000;
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(seconds / size);
    if (count >= 1) return `${count} ${unit}${count > 1 ? "s" : ""} ago`;
  }
  return "just now";
}

const STATE = { far: "good", soon: "warn", urgent: "bad", ended: "bad" };

// What a person should know, the worst first: `bad` hurts now, `soon` will.
function notesOf(status, overview, now) {
  const notes = [];
  const say = (title, text, more = {}) => notes.push({ title, text, ...more });
  if (!status.ready) say("A worker takes no new requests.", "It starts or drains: `appliance status`.", { bad: true });
  for (const [name, view] of Object.entries(status.groups)) {
    const out = view.deployments.filter((d) => d.out_on);
    const text = out.map((d) => `${d.id}: ${d.rest}`).join("; ");
    if (out.length && out.length === view.deployments.length) say(`No model server of group ${name} is in use.`, text, { bad: true });
    else if (out.length) say(`${out.length} of ${view.deployments.length} model servers of group ${name} are left out; the others answer.`, text);
  }
  for (const [name, view] of Object.entries(status.routers)) {
    const { serving, problem, channel } = view;
    const refused = problem ? `${problem.code}: ${problem.cause}. ${problem.remedy}` : "";
    if (view.mode !== "ml") say(`Router ${name} serves nothing; its groups are routed by weight.`, refused || "See `appliance explain OPERATION_ROUTER_STATIC`.", { bad: true });
    else if (channel && registryOf(channel) !== "answers") say(`${AWAY[registryOf(channel)](name)}; it goes on with ${serving.artifact}.`, `${channel.problem ? `${channel.problem}. ` : ""}News and revocations do not arrive; \`scripts/sync-now\` says why.`);
    else if (problem) say(`Router ${name} refused a newer version and goes on with ${serving.artifact}.`, refused);
    if (channel?.expired) say(`The signed pointer of channel ${channel.name} has ended.`, "See `appliance explain REGISTRY_CHANNEL_EXPIRED`.");
    if (!view.converged && view.mode === "ml") say(`The workers serve different versions of router ${name}.`, "Bring them together with `systemctl reload appliance-gateway`.");
  }
  const tripped = trippedOf(status);
  if (tripped) say(`The ML path's breaker is ${tripped.state}; requests are routed by weight.`, `Last reason: ${tripped.last_reason ?? "unknown"}. It closes by itself after good probes.`);
  if (status.egress_refused) say(`${status.egress_refused} connections to unknown destinations were refused.`, "Nothing left the host; `appliance status --json` names the destinations.", { bad: true });
  const live = status.workers.map((worker) => worker.live).find((each) => each?.problem || each?.refused.length);
  if (live) say("A part of the live configuration is refused; its last good form runs.", live.problem ? `${live.problem.code}: ${live.problem.cause}. ${live.problem.remedy}` : live.refused.map((row) => `${row.table} ${row.key}: ${row.cause}`).join("; "));
  for (const each of overview.unread) say(`What ends of ${each.what} cannot be read.`, `${each.code}. ${each.next}`);
  const ending = overview.calendar.filter((each) => each.near !== "far");
  for (const each of ending) {
    const left = until(each.ends, now);
    say(each.near === "ended" ? `${each.what}: it ${left}.` : `${each.what}: it ends in ${left}.`, each.next, { bad: each.near === "ended", soon: each.near !== "ended" });
  }
  return notes.sort((a, b) => Boolean(b.bad) - Boolean(a.bad));
}

const trippedOf = (status) => status.workers.map((worker) => worker.ml_path.breaker).find((breaker) => breaker.state !== "closed");

function until(time, now) {
  const days = (new Date(time) - now) / DAY_MS;
  return days < 0 ? "has ended" : days < 2 ? `${Math.floor(days * 24)} hours` : `${Math.floor(days)} days`;
}

function span(seconds) {
  for (const [unit, size] of [["days", 86400], ["hours", 3600], ["minutes", 60]]) if (seconds >= 2 * size) return `${Math.floor(seconds / size)} ${unit}`;
  return `${Math.round(seconds)} s`;
}

// How a channel's registry does: by this gateway's own word, or by its sidecar's, who alone asks it.
function registryOf(channel) {
  if (channel.problem && channel.problem !== "REGISTRY_SIDECAR") return "no answer";
  if (channel.problem || channel.contact_age_s == null) return "not known";
  return channel.contact_age_s > QUIET_S ? "silent" : "answers";
}

const AWAY = {
  "no answer": (name) => `The registry of router ${name} does not answer soundly`,
  "not known": (name) => `It is not known whether the registry of router ${name} answers`,
  silent: (name) => `Nothing is heard of the registry of router ${name}`,
};

// The channel heard of the longest ago; of those that the sidecar brings for nobody, where no router follows one.
function registryTile(status) {
  const routers = Object.values(status.routers);
  const followed = routers.map((view) => view.channel).filter(Boolean);
  const channels = followed.length ? followed : routers.flatMap((view) => view.unfollowed ?? []);
  const label = "Registry";
  if (!channels.length) return { label, value: "not followed", text: "routers come from folders; no sidecar runs here" };
  const age = (channel) => channel.contact_age_s ?? Infinity;
  const worst = channels.sort((a, b) => Boolean(b.problem) - Boolean(a.problem) || age(b) - age(a))[0];
  const value = registryOf(worst);
  const text = `channel ${worst.name}: ${heard(worst)}${followed.length ? "" : "; no router follows it"}`;
  return { label, value, text, state: value === "answers" ? "good" : "warn" };
}

export function heard(channel) {
  const by = channel.heard_by === "sidecar" ? "the sidecar " : "";
  if (channel.contact_age_s != null) return `answered ${by}${span(channel.contact_age_s)} ago`;
  return channel.problem === "REGISTRY_SIDECAR" ? "when it answered is not known" : "never reached";
}

export function summary({ status, decisions, overview, at }) {
  const workers = status.workers;
  const notes = notesOf(status, overview, at);
  const breakers = workers.map((worker) => worker.ml_path.breaker);
  const tripped = trippedOf(status);
  const servers = Object.values(status.groups).flatMap((group) => group.deployments);
  const out = servers.filter((server) => server.out_on).length;

  const asked = decisions.filter((d) => d.reason !== "configured_round_robin");
  const byModel = asked.filter((d) => d.strategy.startsWith("ml:")).length;
  const latencies = asked.map((d) => d.latency_ms);
  const p50 = quantile(latencies, 0.5), p99 = quantile(latencies, 0.99);
  const budget = overview.deadline_ms;
  const running = workers.reduce((sum, worker) => sum + worker.ml_path.queue_waiting, 0);
  const tiles = [
    { label: "Chosen by a model", value: asked.length ? `${Math.round((byModel / asked.length) * 100)} %` : "no traffic", text: `of the last ${asked.length} decisions`, share: asked.length ? byModel / asked.length : 0, state: asked.length && byModel < asked.length * 0.9 ? "warn" : "good" },
    { label: "Decision time, 99 of 100", value: p99 === null ? "no traffic" : `${p99.toFixed(1)} ms`, text: p99 === null ? `budget ${budget} ms` : `half of them below ${p50.toFixed(1)} ms; budget ${budget} ms`, share: p99 === null ? 0 : p99 / budget, state: p99 > budget ? "bad" : p99 > budget * 0.8 ? "warn" : "good" },
    { label: "Breaker of the ML path", value: tripped ? tripped.state : "closed", text: `opened ${breakers.reduce((sum, b) => sum + b.opened_count, 0)} times; ${running} waiting`, state: tripped ? "warn" : "good" },
    registryTile(status),
    { label: "Model servers", value: `${servers.length - out} of ${servers.length}`, text: out ? `in use, ${out} left out` : "in use", state: out === servers.length ? "bad" : out ? "warn" : "good" },
  ];
  const degraded = notes.some((note) => !note.soon);
  const state = notes.some((note) => note.bad) ? "bad" : notes.length ? "warn" : "good";
  const word = !status.ready ? "not ready" : degraded ? "serving, degraded" : notes.length ? "serving, something ends soon" : "all is well";
  return { state, word, notes, tiles };
}

export function shares({ status, decisions }) {
  return Object.entries(status.groups).map(([name, view]) => {
    const mine = decisions.filter((d) => d.group === name && d.selected);
    const members = view.deployments.map((d, n) => {
      const share = mine.length ? mine.filter((each) => each.selected === d.id).length / mine.length : 0;
      return { id: d.id, model: d.model, share, percent: Math.round(share * 100), colour: `s${(n % 6) + 1}`, problem: d.out_on ? `left out: ${d.cooldown ? `status ${d.cooldown.status_code ?? "unknown"}` : d.health.last_reason}` : "" };
    });
    const how = view.routing === "ml" ? `by router ${view.router}` : "by weight";
    return { name, how: `${how}, last ${mine.length}`, total: mine.length, members };
  });
}

export function calendarRows(calendar, now) {
  return [...calendar]
    .sort((a, b) => new Date(a.ends) - new Date(b.ends))
    .map((each) => ({
      what: each.what, date: each.ends.slice(0, 10), text: until(each.ends, now), state: STATE[each.near],
      share: Math.max(0, Math.min((new Date(each.ends) - now) / (each.begins ? new Date(each.ends) - new Date(each.begins) : 365 * DAY_MS), 1)),
    }));
}

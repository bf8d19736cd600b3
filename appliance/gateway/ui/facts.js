// Pure: the gateway's reports in, what the page says out.

const DAY_MS = 86400000;

export const REASONS = {
  best_score: "best score", only_candidate: "only candidate", configured_round_robin: "by weight, as configured",
  no_prompt: "no prompt text", no_router: "no router: by weight", overload_shed: "overload: by weight",
  deadline: "too slow: by weight", breaker_open: "breaker open: by weight", router_error: "router failed: by weight",
  no_label_for_candidates: "no label: by weight", no_healthy_deployment: "no healthy deployment",
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

function routersOf(workers) {
  const found = {};
  for (const worker of workers) {
    for (const [name, view] of Object.entries(worker.routers)) {
      const known = (found[name] ??= { serving: null, problem: null, channel: view.channel ?? null, digests: new Set(), silent: false });
      known.serving ??= view.serving;
      known.problem ??= view.problem;
      known.silent ||= !view.serving;
      known.digests.add(view.serving ? view.serving.digest : "");
    }
  }
  return found;
}

export function summary({ status, decisions, overview }) {
  const workers = status.workers;
  const routers = routersOf(workers);
  const notes = [];
  const ready = workers.every((worker) => worker.ready);
  if (!ready) notes.push({ bad: true, title: "A worker takes no new requests.", text: "It starts or drains. appliance status" });
  for (const [name, view] of Object.entries(routers)) {
    if (view.silent) notes.push({ bad: true, title: `Router ${name} serves nothing; its groups are routed by weight.`, text: view.problem ? `${view.problem.code}. ${view.problem.remedy}` : "appliance explain OPERATION_ROUTER_STATIC" });
    else if (view.channel?.problem) notes.push({ title: `The registry of router ${name} does not answer; it goes on with ${view.serving.artifact}.`, text: `${view.channel.problem}. News and revocations do not arrive. scripts/sync-now` });
    else if (view.problem) notes.push({ title: `Router ${name} refused a newer version and goes on with ${view.serving.artifact}.`, text: `${view.problem.code}. ${view.problem.remedy}` });
    if (view.channel?.expired) notes.push({ title: `The signed pointer of channel ${view.channel.name} has ended.`, text: "appliance explain REGISTRY_CHANNEL_EXPIRED" });
    if (view.digests.size > 1) notes.push({ title: `The workers differ in router ${name}.`, text: "systemctl reload appliance-gateway" });
  }
  const cooling = Object.entries(workers[0].groups).flatMap(([group, view]) => view.deployments.filter((d) => d.cooldown).map((d) => `${d.id} of ${group}`));
  if (cooling.length) notes.push({ title: "Model servers are left out for a while.", text: cooling.join(", ") });
  const breakers = workers.map((worker) => worker.ml_path.breaker);
  const tripped = breakers.find((breaker) => breaker.state !== "closed");
  if (tripped) notes.push({ title: `The ML path's breaker is ${tripped.state}; requests are routed by weight.`, text: tripped.last_reason ?? "" });

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
    { label: "Model servers", value: (() => { const all = Object.values(workers[0].groups).flatMap((g) => g.deployments); return `${all.filter((d) => !d.cooldown).length} of ${all.length}`; })(), text: "in use", state: cooling.length ? "warn" : "good" },
  ];
  const state = notes.some((note) => note.bad) ? "bad" : notes.length ? "warn" : "good";
  return { state, word: !ready ? "not ready" : state === "good" ? "all is well" : "serving, degraded", notes, tiles, routers };
}

export function shares({ status, decisions }) {
  return Object.entries(status.workers[0].groups).map(([name, view]) => {
    const mine = decisions.filter((d) => d.group === name && d.selected);
    const members = view.deployments.map((d, n) => {
      const share = mine.length ? mine.filter((each) => each.selected === d.id).length / mine.length : 0;
      const problem = d.cooldown ? `cooling down, error ${d.cooldown.status_code ?? "unknown"}` : "";
      return { id: d.id, model: d.model, share, percent: Math.round(share * 100), colour: `s${(n % 6) + 1}`, problem };
    });
    const how = view.routing === "ml" ? `by router ${view.router}` : "by weight";
    return { name, how: `${how}, last ${mine.length}`, total: mine.length, members };
  });
}

export function calendarRows(calendar, now) {
  return calendar
    .map((each) => ({ ...each, left: (new Date(each.ends) - now) / DAY_MS }))
    .sort((a, b) => a.left - b.left)
    .map((each) => ({
      what: each.what, date: each.ends.slice(0, 10), share: Math.max(0, Math.min(each.left / 365, 1)),
      text: each.left < 0 ? "has ended" : each.left < 2 ? `${Math.floor(each.left * 24)} hours` : `${Math.floor(each.left)} days`,
      state: each.left < 3 ? "bad" : each.left < 21 ? "warn" : "good",
    }));
}

// The status page. Polls status.json while it is looked at; chats through the same API as every other client.
// Text from outside is only ever set by textContent. The key lives in sessionStorage: this tab, until it is closed.

const POLL_SECONDS = 2;
const WINDOW = 5; // polls over which the speed is taken
const PHASES = { ready: "ready", starting: "the model is loading", draining: "stopping" };
const KEY = "thriftree.key";
const at = (id) => document.getElementById(id);

/** An element with text, classes and children. */
function make(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

// ---- asking the server

/** An error with words for the reader. */
class Told extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told("The server does not answer. Is it running, and can this browser reach it?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const told = new Told(words(response, body?.error), response.status);
  if (response.status === 401) wantKey(key ? "The server does not know this key." : "");
  throw told;
}

/** What went wrong, for somebody who does not know HTTP. */
function words(response, error) {
  const why = error?.message ?? `the answer was ${response.status} ${response.statusText}`;
  const wait = response.headers.get("retry-after");
  const again = wait ? ` Try again in ${wait} s.` : "";
  if (response.status === 401) return "The server wants a valid API key: enter it above.";
  if (response.status === 429) return `Not now: ${why}.${again}`;
  if (response.status === 503) return `The server is not ready: ${why}.${again}`;
  if (response.status >= 500) return `The server failed: ${why}.`;
  return `The server refused this: ${why}.`;
}

function wantKey(why) {
  if (why) at("key-why").textContent = why;
  at("key-form").hidden = false;
}

// ---- live figures

let polls = [];
let known = false; // model and methods have been read
let speeds = [];

async function poll() {
  if (!document.hidden) await look();
  setTimeout(poll, POLL_SECONDS * 1000);
}

async function look() {
  try {
    const status = await (await ask("status.json")).json();
    at("key-form").hidden = true;
    showState(status.phase);
    at("version").textContent = `thriftree ${status.version}`;
    showFigures(status);
    if (status.phase === "ready" && !known) await learn();
  } catch (error) {
    if (error.status === 401) return showPhase();
    showState("gone", error.message);
  }
}

/** Without a key the phase is all that can be known. */
async function showPhase() {
  try {
    showState((await (await ask("health")).json()).phase);
  } catch (error) {
    showState("gone", error.message);
  }
}

function showState(phase, why) {
  const state = at("state");
  if (phase !== "ready") known = false;
  state.dataset.phase = phase;
  const text = PHASES[phase] ?? "no answer";
  if (state.textContent !== text) state.textContent = text;
  state.title = why ?? "";
}

function showFigures({ uptime_seconds: seconds, totals, requests }) {
  if (polls.length && polls.at(-1).seconds > seconds) polls = []; // it was started again
  polls = [...polls, { seconds, ...totals }].slice(-WINDOW);
  const [first, last] = [polls[0], polls.at(-1)];
  const speed = polls.length > 1 ? (last.generated_tokens - first.generated_tokens) / (last.seconds - first.seconds) : 0;
  at("speed").textContent = number(speed, 1);
  speeds = [...speeds, speed].slice(-60);
  draw(speeds);
  const saved = totals.completion_tokens - totals.steps;
  at("per-step").textContent = totals.steps ? number(totals.completion_tokens / totals.steps, 2) : "–";
  at("saved").textContent = totals.steps ? number(saved) : "–";
  at("saved-share").textContent = totals.steps
    ? `${number((100 * saved) / totals.completion_tokens)} % of ${number(totals.completion_tokens)} since the start`
    : "since the start";
  at("kv").hidden = !totals.kv_dropped;
  at("kv-dropped").textContent = number(totals.kv_dropped);
  at("running").textContent = number(requests.running);
  at("waiting").textContent = `in the engine, ${number(requests.waiting)} waiting`;
}

function draw(values) {
  const most = Math.max(...values, 1);
  const points = values.map((value, i) => `${(60 - values.length + i) * (120 / 59)},${26 - (24 * value) / most}`);
  at("spark").firstElementChild.setAttribute("points", points.join(" "));
}

/** Model and methods, once it is ready. */
async function learn() {
  const models = await (await ask("v1/models")).json();
  const methods = await table();
  at("model").textContent = models.data[0]?.id ?? "";
  at("methods").replaceChildren(...methods.map(row));
  at("methods").closest("section").hidden = !methods.length;
  const select = at("method");
  const chosen = select.value;
  const open = methods.filter((method) => method.family === "speculation" && method.available);
  const preset = open.find((method) => method.default)?.name ?? "off";
  const byDefault = `server’s default${methods.length ? ` (${preset})` : ""}`;
  select.replaceChildren(
    make("option", { text: byDefault, value: "" }),
    ...open.map(({ name }) => make("option", { text: name, value: name })),
    make("option", { text: "off", value: "off" }),
  );
  select.value = chosen;
  at("compare").disabled = !open.length;
  known = true;
}

/** The method table; empty where the engine behind the gateway has none. */
async function table() {
  try {
    return (await (await ask("v1/thrift/methods")).json()).methods;
  } catch (error) {
    if (error.status !== 404) throw error;
    return [];
  }
}

function row(method) {
  const paper = method.paper ?? "";
  const link = /^\d{4}\.\d{4,5}$/.test(paper)
    ? make("a", { text: paper, href: `https://arxiv.org/abs/${paper}`, rel: "noreferrer", target: "_blank" })
    : paper;
  const here = method.available ? (method.default ? "yes, the default" : "yes") : `no: ${method.reason ?? "not built"}`;
  return make(
    "tr", {},
    make("td", {}, make("code", { text: method.name })),
    make("td", { text: method.summary ?? method.family }),
    make("td", { text: method.exact ? "unchanged" : "may change" }),
    make("td", { text: here }),
    make("td", {}, link),
  );
}

// ---- chat

let history = [];
let running = null; // AbortController of the answer under way

function thriftOf(method) {
  if (!method) return {};
  return { thrift: { speculation: method === "off" || method === "auto" ? method : { method } } };
}

/** The events of a stream, parsed. */
async function* events(response) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const bytes of chunks(response.body.getReader())) {
    const parts = (rest + decoder.decode(bytes, { stream: true })).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: ?/, "");
      if (data === "[DONE]") return;
      if (part.startsWith("data:")) yield JSON.parse(data);
    }
  }
  throw new Told("The connection was cut before the answer was whole.");
}

async function* chunks(reader) {
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

/** One answer in a card of its own; its text. */
async function answer(card, messages, method) {
  const begun = performance.now();
  const body = {
    model: at("model").textContent, messages, max_tokens: Number(at("length").value), temperature: 0,
    stream: true, stream_options: { include_usage: true }, ...thriftOf(method),
  };
  const text = card.querySelector(".text");
  const headers = { "content-type": "application/json" };
  let usage = null;
  card.setAttribute("aria-busy", "true");
  try {
    const options = { method: "POST", headers, body: JSON.stringify(body), signal: running.signal };
    for await (const event of events(await ask("v1/chat/completions", options))) {
      if (event.error) throw new Told(`The answer ended early: ${event.error.message}.`);
      usage = event.usage ?? usage;
      text.append(event.choices?.[0]?.delta?.content ?? "");
      card.scrollIntoView({ block: "nearest" });
    }
    card.append(summary(usage, (performance.now() - begun) / 1000));
  } finally {
    card.setAttribute("aria-busy", "false");
  }
  return text.textContent;
}

function summary(usage, seconds) {
  const line = make("p", { className: "usage" });
  if (!usage) return line;
  const { completion_tokens: tokens, thrift } = usage;
  line.append(make("strong", { text: `${number(tokens / seconds, 1)} tokens/s` }), ` · ${tokens} tokens in ${number(seconds, 1)} s`);
  if (!thrift) return line;
  line.append(` · ${thrift.steps} steps, ${number(thrift.tokens_per_step, 2)} tokens per step`);
  const { drafted, accepted, method } = thrift.speculation;
  line.append(method ? ` · ${accepted} of ${drafted} drafted tokens accepted` : " · nothing drafted");
  const { tokens_seen: seen, tokens_kept: kept } = thrift.kv;
  if (kept < seen) line.append(` · ${kept} of ${seen} KV tokens kept`);
  return line;
}

function newCard(title) {
  return make("article", { className: "card answer" }, make("h3", { text: title }), make("p", { className: "text" }));
}

async function send(message) {
  running = new AbortController();
  const method = at("method");
  const wanted = [[method.selectedOptions[0].textContent, method.value]];
  if (at("compare").checked && method.value !== "off") wanted.push(["off", "off"]);
  const cards = wanted.map(([name]) => newCard(`Speculation: ${name}`));
  at("log").append(make("p", { className: "asked", text: message }), make("div", { className: "answers" }, ...cards));
  const messages = [...history, { role: "user", content: message }];
  at("message").value = "";
  busy(true);
  let card = null;
  try {
    const texts = [];
    for (const [i, [name, value]] of wanted.entries()) {
      card = cards[i];
      say(`Answering, speculation ${name}.`);
      texts.push(await answer(card, messages, value));
    }
    history = [...messages, { role: "assistant", content: texts[0] }];
    say(texts.length > 1 ? (texts[0] === texts[1] ? "Both answers are the same, word by word." : "The answers differ.") : "Done.");
  } catch (error) {
    failed(card, error);
    at("message").value = message;
  } finally {
    running = null;
    busy(false);
  }
}

function failed(card, error) {
  const stopped = error.name === "AbortError";
  const text = stopped ? "Stopped." : error instanceof Told ? error.message : `This page failed: ${error.message}.`;
  card.append(make("p", { className: stopped ? "usage" : "error", text }));
  say(text);
}

function say(text) {
  at("said").textContent = text;
}

function busy(on) {
  at("send").textContent = on ? "Stop" : "Send";
  at("clear").disabled = on;
}

at("chat").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return running.abort();
  const message = at("message").value.trim();
  if (message) send(message);
});
at("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) at("chat").requestSubmit();
});
at("clear").addEventListener("click", () => {
  history = [];
  at("log").replaceChildren();
  say("");
  at("message").focus();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, at("key").value.trim());
  at("key").value = "";
  look();
});
document.addEventListener("visibilitychange", () => document.hidden || look());
poll();

// The page: it puts conversations, the server's replies and what is on the screen together.

import { ask, listModels } from "./client.js";
import { cutAt, forget, loadAll, newConversation, openStorage, save, toMessages, withTurn } from "./conversation.js";
import { element, fillReply, showTurn } from "./view.js";

const SETTINGS = "ikq.settings";
const storage = openStorage(window);
const $ = id => document.getElementById(id);

const settings = { system: "", temperature: "", maxTokens: "", key: "", model: "", ...readSettings() };
let conversation = loadAll(storage)[0] ?? newConversation(Date.now());
let running = null; // AbortController of the reply that comes in

function readSettings() {
  try {
    const kept = JSON.parse(storage.getItem(SETTINGS) ?? "{}");
    return Object.fromEntries(Object.entries(kept).filter(([, value]) => typeof value === "string"));
  } catch {
    return {};
  }
}

function requestFor(messages) {
  return {
    messages,
    ...(settings.model ? { model: settings.model } : {}),
    ...(settings.temperature === "" ? {} : { temperature: Number(settings.temperature) }),
    ...(settings.maxTokens === "" ? {} : { max_tokens: Number(settings.maxTokens) }),
  };
}

function keep(changed) {
  conversation = changed;
  showList(save(storage, conversation));
}

function showAll() {
  const { turns } = conversation;
  $("log").replaceChildren(...turns.map((turn, at) => showTurn(turn, {
    ...(turn.role === "user" && !running ? { edit: text => send(cutAt(conversation, at), text) } : {}),
    ...(turn.role === "assistant" && at === turns.length - 1 && !running ? { again: () => answer(cutAt(conversation, at)) } : {}),
  })));
  $("empty").hidden = turns.length > 0;
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
}

function showList(all = loadAll(storage)) {
  $("list").replaceChildren(...all.map(kept => element("li", {},
    element("button", {
      type: "button", className: "quiet", text: kept.title || "(empty)",
      ...(kept.id === conversation.id ? { "aria-current": "true" } : {}), onclick: () => open(kept),
    }),
    element("button", {
      type: "button", className: "quiet", "aria-label": `Delete ${kept.title}`, text: "×", onclick: () => drop(kept),
    }))));
}

function open(other) {
  stop();
  conversation = other;
  document.body.classList.remove("listing");
  showList();
  showAll();
  $("text").focus();
}

function drop(kept) {
  const all = forget(storage, kept.id);
  if (kept.id === conversation.id) open(all[0] ?? newConversation(Date.now()));
  else showList(all);
}

function stop() {
  running?.abort();
  running = null;
}

function send(before, text) {
  if (running || !text.trim()) return;
  answer(withTurn(before, { role: "user", content: text }));
}

// Lets the model answer; what is there is kept even if it is stopped or breaks off.
async function answer(before) {
  const controller = running = new AbortController();
  const id = before.id;
  const turn = { role: "assistant", content: "", reasoning: "" };
  keep(before);
  showAll();
  const shown = showTurn(turn, {});
  shown.setAttribute("aria-busy", "true");
  $("log").append(shown);
  shown.scrollIntoView({ block: "end" });
  const show = oncePerFrame(() => {
    const follows = atEnd();
    fillReply(shown.querySelector(".body"), turn);
    if (follows) window.scrollTo(0, document.documentElement.scrollHeight);
  });
  $("state").textContent = "The model is answering.";
  let told = "";
  try {
    const end = await ask(requestFor(toMessages(before, settings.system)), settings.key, controller.signal, piece => {
      turn.content += piece.content;
      turn.reasoning += piece.reasoning;
      show();
    });
    told = end.usage ? `${end.usage.completion_tokens} tokens` : "Done.";
    if (end.reason === "length") told += ", cut off at the limit";
  } catch (error) {
    if (!controller.signal.aborted) turn.error = error.message;
    told = controller.signal.aborted ? "Stopped." : "The reply failed.";
  }
  const done = withTurn(before, turn);
  if (conversation.id === id) {
    running = null;
    $("state").textContent = told;
    $("spoken").textContent = turn.content;
    keep(done);
    showAll();
    return;
  }
  // another conversation is on the screen by now; this one is kept if it was not deleted
  if (loadAll(storage).some(kept => kept.id === id)) showList(save(storage, done));
}

function oncePerFrame(act) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => { waits = false; act(); });
  };
}

const atEnd = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 80;

async function showModels() {
  try {
    const models = await listModels(settings.key);
    $("model").replaceChildren(...models.map(name => element("option", { value: name, text: name })));
    if (models.includes(settings.model)) $("model").value = settings.model;
    else settings.model = models[0] ?? "";
    $("state").textContent = "";
  } catch (error) {
    $("state").textContent = error.message;
  }
}

function showSettings() {
  for (const name of ["system", "temperature", "maxTokens", "key"]) $(name).value = settings[name];
  $("settings").showModal();
}

function keepSettings() {
  for (const name of ["system", "temperature", "maxTokens", "key"]) settings[name] = $(name).value;
  storage.setItem(SETTINGS, JSON.stringify(settings));
}

$("form").addEventListener("submit", event => {
  event.preventDefault();
  const text = $("text").value;
  if (running || !text.trim()) return;
  $("text").value = "";
  send(conversation, text);
});
$("text").addEventListener("keydown", event => {
  // on a phone the key is for new lines; while a word is being composed it belongs to that
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
  event.preventDefault();
  $("form").requestSubmit();
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && running && !$("settings").open) running.abort();
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => open(newConversation(Date.now())));
$("conversations").addEventListener("click", () => document.body.classList.toggle("listing"));
$("open-settings").addEventListener("click", showSettings);
$("settings-form").addEventListener("submit", () => { keepSettings(); showModels(); });
$("cancel").addEventListener("click", () => $("settings").close());
$("model").addEventListener("change", () => {
  settings.model = $("model").value;
  storage.setItem(SETTINGS, JSON.stringify(settings));
});

showList();
showAll();
showModels();

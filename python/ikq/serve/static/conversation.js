// Conversations: what was said, and how it is kept. A turn is { role, content, and perhaps reasoning, error }.

const KEY = "ikq.conversations";
const MOST = 50;

export function newConversation(now) {
  return { id: String(now), title: "", turns: [] };
}

// The conversation without the turn at `at` and those after it.
export function cutAt(conversation, at) {
  return { ...conversation, title: at ? conversation.title : "", turns: conversation.turns.slice(0, at) };
}

export function withTurn(conversation, turn) {
  const turns = [...conversation.turns, turn];
  const title = conversation.title || titleOf(turns);
  return { ...conversation, title, turns };
}

function titleOf(turns) {
  const first = turns.find(turn => turn.role === "user");
  const line = (first?.content ?? "").trim().split("\n")[0];
  return line.length > 48 ? line.slice(0, 47) + "…" : line;
}

// Messages in the form of chat completions. Thoughts are not sent back, as templates expect it; a reply that
// failed before it said anything is left out.
export function toMessages(conversation, system) {
  const said = conversation.turns.filter(turn => turn.role === "user" || turn.content);
  const messages = said.map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...messages] : messages;
}

// Conversations that are kept, the latest first. What is damaged is not there.
export function loadAll(storage) {
  try {
    const kept = JSON.parse(storage.getItem(KEY) ?? "[]");
    return Array.isArray(kept) ? kept.filter(isConversation) : [];
  } catch {
    return [];
  }
}

function isConversation(kept) {
  const isText = value => typeof value === "string";
  return kept !== null && typeof kept === "object" && isText(kept.id) && isText(kept.title) && Array.isArray(kept.turns)
    && kept.turns.every(turn => turn && ["user", "assistant"].includes(turn.role) && isText(turn.content)
      && (turn.reasoning === undefined || isText(turn.reasoning)) && (turn.error === undefined || isText(turn.error)));
}

// Keeps a conversation as the latest; the oldest go when there is no room. Returns those that are kept.
export function save(storage, conversation) {
  const others = loadAll(storage).filter(kept => kept.id !== conversation.id);
  let all = [conversation, ...others].slice(0, MOST);
  while (all.length) {
    try {
      storage.setItem(KEY, JSON.stringify(all));
      return all;
    } catch {
      all = all.slice(0, -1);
    }
  }
  return [];
}

// Where things are kept: in the browser, or, where it forbids that, until the page is closed.
export function openStorage(window) {
  try {
    window.localStorage.setItem("ikq.probe", "");
    window.localStorage.removeItem("ikq.probe");
    return window.localStorage;
  } catch {
    const kept = new Map();
    return { getItem: key => kept.get(key) ?? null, setItem: (key, value) => kept.set(key, value) };
  }
}

export function forget(storage, id) {
  const all = loadAll(storage).filter(kept => kept.id !== id);
  storage.setItem(KEY, JSON.stringify(all));
  return all;
}
